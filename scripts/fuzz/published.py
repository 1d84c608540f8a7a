"""The second part: the published OpenAPI document, tried against a running Chimera by schemathesis.

Each operation in turn, with what the document allows and with what it does not. No answer may have a status, a content
type or a form that the document does not tell of, none a 500 of Chimera's own, and none may be long in coming.
"""

import random
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException, Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import Failure, FailureGroup

from scripts.fuzz.corpus import Notebook
from scripts.fuzz.requests import ADMIN_TOKEN
from scripts.fuzz.stage import MODEL, Stage, Trouble
from scripts.fuzz.tally import Clock, Tally

EXAMPLES = 25
# Longer than any of Chimera's own limits on this stage: a load, a wait for a slot, a silent worker.
ANSWER_TIMEOUT_S = 45.0
CHECKS_OF_ALL = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
# More workers would try this machine, not Chimera.
MOST_SPAWNED = 2


class Published:
    """The part: every operation of the document, over and over until the time is spent."""

    def __init__(self, stage: Stage, notebook: Notebook, chance: random.Random) -> None:
        self.tally = Tally("published")
        self._stage = stage
        self._notebook = notebook
        self._chance = chance
        self._session = requests.Session()
        self._session.trust_env = False
        load_all_checks()
        self._checks: Any = CHECKS.get_by_names(list(CHECKS_OF_ALL))
        self._ids: list[str] = []

    def run(self, clock: Clock) -> None:
        """Try until the clock is over. An operation with a finding is not tried further."""
        while clock.left_s > 0:
            self.once(clock)

    def once(self, clock: Clock) -> None:
        """Try every operation, unless the clock is over before."""
        document = self._stage.made.client.get("/openapi.json").raise_for_status().json()
        found: list[Any] = list(schemathesis.openapi.from_dict(document).get_all_operations())
        for operation in (result.ok() for result in found):
            name = f"{operation.method.upper()} {operation.path}"
            if clock.left_s > 0 and all(finding.target != name for finding in self.tally.findings):
                self._operation(name, operation, clock)

    def _operation(self, name: str, operation: Any, clock: Clock) -> None:
        self._stage.refill()
        self._ids = [row["id"] for row in self._stage.made.instances()] + ["primary"]
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                self._slice(name, operation.as_strategy(generation_mode=mode), clock)
                self._stage.look()
            except Unsatisfiable:
                continue  # it has nothing that could be wrong
            except (Failure, FailureGroup, Trouble, requests.RequestException, BaseExceptionGroup) as error:
                self.tally.found(name, _told(error), self._last)
            except HypothesisException as error:
                self.tally.found(name, f"cannot be tried: {error}", mode.value)

    _last = ""

    def _slice(self, name: str, cases: st.SearchStrategy[Any], clock: Clock) -> None:
        @seed(self._chance.getrandbits(64))
        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                  phases=[Phase.generate], print_blob=False)  # fmt: skip
        @given(cases, st.randoms(use_true_random=False))
        def attempt(case: Any, chance: random.Random) -> None:
            if clock.left_s > 0:
                self._one(name, case, chance)

        attempt()

    def _one(self, name: str, case: Any, chance: random.Random) -> None:
        self._steer(case, chance)
        self._last = case.as_curl_command()
        self._notebook.trying("published", self._last.encode("utf-8", "replace"))
        self.tally.tried(name)
        try:
            response = case.call(
                base_url=self._stage.made.url, session=self._session, timeout=ANSWER_TIMEOUT_S,
                headers={"Authorization": f"Bearer {ADMIN_TOKEN}"},
            )  # fmt: skip
        except (UnicodeError, requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL):
            return  # requests itself cannot send that
        case.validate_response(response, checks=self._checks)
        own = "x-chimera-worker" not in {header.lower() for header in response.headers}
        if response.status_code in (500, 502) and own:
            raise Trouble(f"{response.status_code}: {response.text[:300]}")
        if own and response.status_code >= 400 and "error" not in response.text and case.method.upper() != "HEAD":
            raise Trouble(f"an error of Chimera's own without a word: {response.status_code} {response.text[:300]!r}")
        if name.endswith("/spawn") and response.status_code == 202:
            gone = {"ids": [row["id"] for row in response.json()["instances"]], "force": True}
            self._stage.made.client.post("/admin/instances/prune", json=gone).raise_for_status()

    def _steer(self, case: Any, chance: random.Random) -> None:
        """Name, half of the time, workers, GPUs and models that there are; keep an answer from having no end."""
        known = {
            "worker_id": self._ids,
            "gpu": ["0", "1", *(gpu.uuid for gpu in self._stage.nvml.gpus)],
            "model": [MODEL],
        }
        for name, choices in known.items():
            if name in (case.path_parameters or {}) and chance.random() < 0.5:
                case.path_parameters[name] = chance.choice(choices)
        if isinstance(case.query, dict):
            case.query.pop("follow", None)  # those answers end when the client leaves; `wire` tries them
        if isinstance(case.body, dict):
            for name in ("model", "name"):
                if name in case.body and chance.random() < 0.5:
                    case.body[name] = MODEL
            if isinstance(count := case.body.get("count"), int | float) and count > MOST_SPAWNED:
                case.body["count"] = MOST_SPAWNED


def _told(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_told(one) for one in error.exceptions)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:800]
