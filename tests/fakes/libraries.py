"""What the client libraries do in the tests: each scenario asks one server, and returns what its user would see.

What a library gives is boiled down to plain values without times and ids, so that two servers can be compared.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import anyio
import httpx
import langchain_ollama
import ollama
import openai
from pydantic import BaseModel

from supervisor.embedded import MODEL
from tests.fakes.talker import FEW, SCHEMA, TALKER, TOOLS, WEATHER

Scenario = Callable[[str], Any]

ASKS = [{"role": "user", "content": WEATHER}]
LONGER = FEW | {"num_predict": 20}
STORY = {"temperature": 0, "num_predict": 400}
_VARIES = {
    "created", "created_at", "modified_at", "expires_at", "id", "total_duration", "load_duration",
    "prompt_eval_duration", "eval_duration", "parameters", "modelfile", "parent_run_id",
}  # fmt: skip


def plain(seen: Any) -> Any:
    """Return what was seen as plain values, without times, ids, and what Ollama itself writes in a new order."""
    if isinstance(seen, BaseModel):
        return type(seen).__name__, plain(seen.model_dump(warnings=False))
    if isinstance(seen, dict):
        return {name: plain(value) for name, value in seen.items() if name not in _VARIES}
    if isinstance(seen, list | tuple):
        return [plain(value) for value in seen]
    return seen


def refusal(ask: Callable[[], object]) -> tuple[str, str]:
    """Return the kind and the words of the exception that a call ends with."""
    try:
        answered = ask()
    except Exception as error:
        return type(error).__qualname__, str(error)
    raise AssertionError(f"answered: {answered}")


def _run(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine as most users of these libraries do, on asyncio."""
    return anyio.run(ask)


# -- ollama ------------------------------------------------------------------------------------------------------------


@contextmanager
def _ollama(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=url, trust_env=False) as client:
        yield client


def ollama_chat(url: str) -> Any:
    with _ollama(url) as client:
        whole = client.chat(TALKER, ASKS, options=FEW)
        parts = list(client.chat(TALKER, ASKS, options=FEW, stream=True))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    return plain([whole, *parts])


def ollama_generate(url: str) -> Any:
    with _ollama(url) as client:
        return plain([*client.generate(TALKER, WEATHER, options=FEW, stream=True)])


def ollama_tools(url: str) -> Any:
    with _ollama(url) as client:
        parts = list(client.chat(TALKER, ASKS, tools=TOOLS, options=LONGER, stream=True))
    (call,) = [call for part in parts for call in part.message.tool_calls or ()]
    assert call.function.arguments == {"city": "Paris"}
    return plain(parts)


def ollama_structured(url: str) -> Any:
    with _ollama(url) as client:
        whole = client.chat(TALKER, ASKS, format=SCHEMA, options=FEW | {"num_predict": 12})
    return plain(whole)


def ollama_embeddings(url: str) -> Any:
    with _ollama(url) as client:
        return plain([client.embed(MODEL, ["the sky", "the sea"]), client.embeddings(MODEL, "the sky")])


def ollama_models(url: str) -> Any:
    with _ollama(url) as client:
        names = sorted(model.model or "" for model in client.list().models)
        return plain([names, client.show(TALKER), [model.model for model in client.ps().models]])


def ollama_refusals(url: str) -> Any:
    with _ollama(url) as client:
        return [
            refusal(lambda: client.chat("nobody", ASKS)),
            refusal(lambda: list(client.chat("nobody", ASKS, stream=True))),
            refusal(lambda: client.chat(MODEL, ASKS, tools=TOOLS)),
            refusal(lambda: client.show("nobody")),
            refusal(lambda: client.embed("nobody", "x")),
            refusal(lambda: client.delete("nobody")),
            refusal(lambda: client.copy("nobody", "somebody")),
        ]


def ollama_async(url: str) -> Any:
    async def ask() -> Any:
        async with ollama.AsyncClient(host=url, trust_env=False) as client:
            return plain([part async for part in await client.chat(TALKER, ASKS, options=FEW, stream=True)])

    return _run(ask)


# -- openai ------------------------------------------------------------------------------------------------------------

V1: dict[str, Any] = {"model": TALKER, "messages": ASKS, "temperature": 0, "seed": 7}


class Weather(BaseModel):
    """What is asked for where an answer is to have a form."""

    warm: bool


def _base(url: str) -> dict[str, Any]:
    return {"base_url": f"{url}/v1", "api_key": "any", "max_retries": 0}


@contextmanager
def _openai(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(**_base(url)) as client:
        yield client


def openai_chat(url: str) -> Any:
    with _openai(url) as client:
        whole = client.chat.completions.create(**V1, max_tokens=5)
        parts = list(
            client.chat.completions.create(**V1, max_tokens=5, stream=True, stream_options={"include_usage": True})
        )
    said = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert said == whole.choices[0].message.content
    return plain([whole, *parts])


def openai_completions(url: str) -> Any:
    with _openai(url) as client:
        asked: dict[str, Any] = {"model": TALKER, "prompt": WEATHER, "max_tokens": 5, "temperature": 0, "seed": 7}
        return plain([*client.completions.create(**asked, stream=True)])


def openai_tools(url: str) -> Any:
    with _openai(url) as client:
        whole = client.chat.completions.create(**V1, max_tokens=20, tools=TOOLS)
    (call,) = whole.choices[0].message.tool_calls or [None]
    assert call is not None
    assert call.type == "function"
    assert call.function.arguments == '{"city":"Paris"}'
    return plain(whole)


def openai_structured(url: str) -> Any:
    with _openai(url) as client:
        whole = client.chat.completions.parse(**V1, max_tokens=12, response_format=Weather)
    assert isinstance(whole.choices[0].message.parsed, Weather)
    return plain(whole)


def openai_embeddings(url: str) -> Any:
    with _openai(url) as client:
        return plain(client.embeddings.create(model=MODEL, input=["the sky", "the sea"], encoding_format="float"))


def openai_models(url: str) -> Any:
    with _openai(url) as client:
        return sorted(model.id for model in client.models.list()), client.models.retrieve(MODEL).id


def openai_refusals(url: str) -> Any:
    with _openai(url) as client:
        create = client.chat.completions.create
        return [
            refusal(lambda: create(model="nobody", messages=[{"role": "user", "content": "x"}])),
            refusal(lambda: create(model="nobody", messages=[{"role": "user", "content": "x"}], stream=True)),
            refusal(lambda: create(model=TALKER, messages=[])),
            refusal(lambda: client.embeddings.create(model="nobody", input="x")),
            refusal(lambda: client.models.retrieve("nobody")),
            refusal(lambda: client.responses.create(model=TALKER, input="x")),  # 0.5.4 does not know it
        ]


def openai_async(url: str) -> Any:
    async def ask() -> Any:
        async with openai.AsyncOpenAI(**_base(url)) as client:
            stream = await client.chat.completions.create(**V1, max_tokens=5, stream=True)
            return plain([part async for part in stream])

    return _run(ask)


# -- anthropic ---------------------------------------------------------------------------------------------------------


def anthropic_refusals(url: str) -> Any:
    """Ollama 0.5.4 has no /v1/messages: its own refusal is what the client meets."""
    asked: Any = {"model": TALKER, "max_tokens": 5, "messages": ASKS}
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        return [
            refusal(lambda: client.messages.create(**asked)),
            refusal(lambda: client.messages.create(**asked, stream=True)),
            refusal(lambda: client.messages.count_tokens(model=TALKER, messages=asked["messages"])),
        ]


# -- langchain-ollama --------------------------------------------------------------------------------------------------


@contextmanager
def _langchain(url: str, **more: Any) -> Iterator[langchain_ollama.ChatOllama]:
    given: dict[str, Any] = {"model": TALKER, "temperature": 0, "seed": 7, "num_predict": 5} | more
    chat = langchain_ollama.ChatOllama(base_url=url, client_kwargs={"trust_env": False}, **given)
    try:
        yield chat
    finally:
        _close(chat._client)


def _close(client: Any) -> None:
    """Close a client that its library leaves open."""
    client.close()


def langchain_chat(url: str) -> Any:
    with _langchain(url) as chat:
        whole, parts = chat.invoke(WEATHER), list(chat.stream(WEATHER))
    assert "".join(str(part.content) for part in parts) == whole.content
    return plain([whole, *parts])


def langchain_tools(url: str) -> Any:
    with _langchain(url, num_predict=20) as chat:
        whole = chat.bind_tools(TOOLS).invoke(WEATHER)
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Paris"}]
    return plain(whole)


def langchain_structured(url: str) -> Any:
    with _langchain(url, num_predict=12) as chat:
        answer = chat.with_structured_output(Weather, method="json_schema").invoke(WEATHER)
    assert isinstance(answer, Weather)
    return plain(answer)


def langchain_text(url: str) -> Any:
    text = langchain_ollama.OllamaLLM(
        model=TALKER, base_url=url, temperature=0, seed=7, num_predict=5, client_kwargs={"trust_env": False}
    )
    try:
        return [text.invoke(WEATHER), list(text.stream(WEATHER))]
    finally:
        _close(text._client)


def langchain_embeddings(url: str) -> Any:
    embeddings = langchain_ollama.OllamaEmbeddings(model=MODEL, base_url=url, client_kwargs={"trust_env": False})
    try:
        return embeddings.embed_query("the sky"), embeddings.embed_documents(["the sky", "the sea"])
    finally:
        _close(embeddings._client)


def langchain_refusals(url: str) -> Any:
    with _langchain(url, model="nobody") as nobody, _langchain(url, model=MODEL) as toolless:
        return [
            refusal(lambda: nobody.invoke("x")),
            refusal(lambda: list(nobody.stream("x"))),
            refusal(lambda: toolless.bind_tools(TOOLS).invoke("x")),
        ]


def langchain_async(url: str) -> Any:
    async def ask() -> Any:
        with _langchain(url) as chat:
            try:
                return plain([part async for part in chat.astream(WEATHER)])
            finally:
                await _aclose(chat._async_client)

    return _run(ask)


SCENARIOS: list[Scenario] = [
    ollama_chat, ollama_generate, ollama_tools, ollama_structured, ollama_embeddings, ollama_models, ollama_refusals,
    ollama_async, openai_chat, openai_completions, openai_tools, openai_structured, openai_embeddings, openai_models,
    openai_refusals, openai_async, anthropic_refusals, langchain_chat, langchain_tools, langchain_structured,
    langchain_text, langchain_embeddings, langchain_refusals, langchain_async,
]  # fmt: skip


# -- leaving in the midst of an answer ---------------------------------------------------------------------------------


def _first(parts: Iterable[Any]) -> None:
    """Take the first part of an answer and leave."""
    stream = iter(parts)
    next(stream)
    getattr(stream, "close", lambda: None)()


async def _first_of(parts: AsyncIterator[Any]) -> None:
    await anext(parts)
    await getattr(parts, "aclose", _nothing)()


async def _nothing() -> None:
    """Nothing is to be closed."""


async def _aclose(client: Any) -> None:
    """Close an asynchronous client that its library leaves open."""
    await client.close()


def ollama_leaves(url: str) -> None:
    with _ollama(url) as client:
        _first(client.chat(MODEL, ASKS, options=STORY, stream=True))


def ollama_async_leaves(url: str) -> None:
    async def ask() -> None:
        async with ollama.AsyncClient(host=url, trust_env=False) as client:
            await _first_of(await client.chat(MODEL, ASKS, options=STORY, stream=True))

    _run(ask)


def openai_leaves(url: str) -> None:
    with _openai(url) as client, client.chat.completions.create(**V1 | {"model": MODEL}, stream=True) as stream:
        next(iter(stream))


def openai_async_leaves(url: str) -> None:
    async def ask() -> None:
        async with (
            openai.AsyncOpenAI(**_base(url)) as client,
            await client.chat.completions.create(**V1 | {"model": MODEL}, stream=True) as stream,
        ):
            await anext(aiter(stream))

    _run(ask)


def ollama_async_is_cancelled_before_its_answer(url: str) -> None:
    """It asks for a whole answer, and does not wait for it."""

    async def ask() -> None:
        async with ollama.AsyncClient(host=url, trust_env=False) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.generate(MODEL, WEATHER, options=STORY))
            await _busy(url)
            tasks.cancel_scope.cancel()

    _run(ask)


def langchain_leaves(url: str) -> None:
    with _langchain(url, model=MODEL, num_predict=400) as chat:
        _first(chat.stream(WEATHER))


def langchain_async_leaves(url: str) -> None:
    async def ask() -> None:
        with _langchain(url, model=MODEL, num_predict=400) as chat:
            try:
                await _first_of(chat.astream(WEATHER))
            finally:
                await _aclose(chat._async_client)

    _run(ask)


async def _busy(url: str) -> None:
    """Return when a worker has a request."""
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        while not any(row["inflight"] for row in (await client.get("/admin/instances")).json()["instances"]):
            await anyio.sleep(0.02)


CANCELLED: list[Callable[[str], None]] = [
    ollama_leaves, ollama_async_leaves, ollama_async_is_cancelled_before_its_answer, openai_leaves,
    openai_async_leaves, langchain_leaves, langchain_async_leaves,
]  # fmt: skip
