"""The gateway: answers the Ollama API on one port and gives each request to the worker that answers it soonest.

The map, from the socket inwards:

`door` accepts connections, as many as `connections` lets in. On each, a `stream`, what comes is checked and timed
(`framing`, of `head` and `chunks`), what goes waits for no slow reader (`outgoing`), a refusal is written as it goes
over the `wire`; with TLS (`tls`) all of that holds for what is under it. There are two lanes from there. The `express`
lane answers ordinary requests for forwarded paths on the stream itself, and hears from `leaving` who leaves meanwhile.
With the first request that is anything else (HTTP/2, a page, a chunked body, Expect, Upgrade) the connection goes to
Hypercorn: `asgi` has the forwarded paths there, `app` (Quart) the pages (`admin`, health, `metrics`), and `answering`
sees to it that every answer has an end. The name in its Host says which site a request is for (`hosts`): the API, or
the web `page`.

Both lanes bring a `body` and a reply to `front`, which decides who answers, and whether the key may. `exchange` waits
in `admission` for a lease, has the worker asked by `upstream` (over a `link`, by what `asking` writes and `response`
reads), relays (`relayed` is what it has seen of the answer), and tries another worker while nothing has been sent;
`request` is what it is about. `patience` wakes those who wait too long; `readiness` is one task's ear for many
connections. `fleetwide` makes one answer of many workers', `pulls` one pull of many clients'.

Who asks is decided by `keyring` at a request's start, from memory. Keys outlive a restart in `key_store`, on
`database` (SQLAlchemy; `tables`, brought up to date by `migrations`), and a damaged file of it is put back by `rescue`
from one of its `copies`; the operator changes them in `admin_keys`.

The decisions are pure and stand apart: `dispatch` (who gets which slot) about `slots` (tickets, leases, workers), with
`line` (the queue), `affinity` (who still holds a conversation's beginning), `fair` (whose turn it is), `pace` (who is
slow) and `breaker` (who fails, and is passed over); `retry` (who is asked after a fault), `ollama` (which path who
answers, what a body asks for, what an error says), `load_options` (what would load a model anew), `headers`, `errors`
(what went wrong -> what the client is told), `forwarded` (who the client is, behind proxies that are trusted), `auth`
(who may administer), `admin_asks` (what the operator asks), `traefik` (what that proxy is told), `keys` and `limits`
(what a key is, and what it may take).

`retune` gives a running gateway other values, for settings that are read anew.

What is told of a request: `phases` are noted while it runs, each try at a worker by `noted`; when it has ended `book`
makes of them the `metrics` (kept in `tally`; its `labels` stay few, with `fleet_metrics` for workers and GPUs), its
`access` line (its time written by `stamps`; `admin_access` has that of the admin API) and, where asked for, its spans
(`tracing`, with `traceparent`). `ending` says whether a stream came to its end.

`openapi` tells all of it to programs, at GET /openapi.json; a new route needs its row there, a test says which.

The gateway never imports the supervisor. What it needs of it is `admin.FleetAdmin`; what the supervisor tells it
arrives at `admission.Admission`. The root in `supervisor/__main__.py` introduces the two.
"""
