"""The gateway: answers the Ollama API on one port and gives each request to the worker that answers it soonest.

The map, from the socket inwards:

`door` accepts connections, as many as `connections` lets in, and hands each to Hypercorn as a `stream`: what comes is
checked and timed there (`framing`, of `head` and `chunks`), what goes waits for no slow reader (`outgoing`), a refusal
is written as it goes over the `wire`. `answering` sees to it that every answer has an end. `asgi` turns each request
into a call of `exchange`, or passes it to `app` (Quart: `admin`, health, `metrics`). `exchange` waits in `admission`
for a lease, talks to the worker through `upstream`, relays, and tries another worker while nothing has been sent;
`request` is what it is about. `fleetwide` makes one answer of many workers', `pulls` one pull of many clients'.

Who asks is decided by `keyring` at a request's start, from memory. Keys outlive a restart in `key_store`, on
`database` (SQLAlchemy; `tables`, brought up to date by `migrations`); the operator changes them in `admin_keys`.

The decisions are pure and stand apart: `dispatch` (who gets which slot) about `slots` (tickets, leases, workers), with
`line` (the queue), `affinity` (who still holds a conversation's beginning), `fair` (whose turn it is), `pace` (who is
slow) and `breaker` (who fails, and is passed over); `retry` (who is asked after a fault), `ollama` (which path who
answers, what a body asks for, what an error says), `load_options` (what would load a model anew), `headers`, `errors`
(what went wrong -> what the client is told), `auth` (who may administer), `keys` and `limits` (what a key is, and what
it may take).

What is told of a request: `phases` are noted while it runs; when it has ended `book` makes of them the `metrics` (whose
`labels` stay few, with `fleet_metrics` for workers and GPUs), its `access` line and, where asked for, its spans
(`tracing`, with `traceparent`). `ending` says whether a stream came to its end.

`openapi` tells all of it to programs, at GET /openapi.json; a new route needs its row there, a test says which.

The gateway never imports the supervisor. What it needs of it is `admin.FleetAdmin`; what the supervisor tells it
arrives at `admission.Admission`. `supervisor/__main__.py` introduces the two.
"""
