"""What the text of one setting may be, and what it is read into. Pure. Host names are read in `domains`.

Each function takes what is no text as it is, and raises ValueError whose text says what is wrong with it; the name of
the setting is put before it by who reads them all (`config_load`).
"""

import ipaddress
import re

# The most workers there are at one time.
MOST_WORKERS = 256

# A worker's variables that Chimera itself decides: WORKER_ENV may not contradict it.
MANAGED_BY = {
    "OLLAMA_HOST": "WORKER_PORT_BASE",
    "OLLAMA_MODELS": "OLLAMA_MODELS",
    "OLLAMA_NUM_PARALLEL": "WORKER_SLOTS",
    "OLLAMA_NOPRUNE": "nothing: the primary alone prunes the shared store",
    "CUDA_VISIBLE_DEVICES": "WORKERS",
    "CUDA_DEVICE_ORDER": "nothing: workers are pinned by UUID",
    "OLLAMA_VULKAN": "nothing: Vulkan sees GPUs that a worker must not use",
    "ROCR_VISIBLE_DEVICES": "nothing: this version pins NVIDIA GPUs only",
    "HIP_VISIBLE_DEVICES": "nothing: this version pins NVIDIA GPUs only",
    "CHIMERA_WORKER": "nothing: it is Chimera's own mark",
}


def workers(value: object) -> object:
    """Read `auto`, or `gpu:0=1,gpu:GPU-ab12=2,cpu=1` into ((gpu or cpu, count), …); None is auto."""
    if not isinstance(value, str):
        return value
    if value.strip().lower() == "auto":
        return None
    pairs: list[tuple[str, int]] = []
    for part in value.split(","):
        name, equals, count = (piece.strip() for piece in part.partition("="))
        gpu = name.removeprefix("gpu:")
        if not equals or not re.fullmatch(r"\d{1,9}", count) or not (name.lower() == "cpu" or (name != gpu and gpu)):
            raise ValueError(f"{part.strip()!r} is not gpu:INDEX=N, gpu:UUID=N or cpu=N; or write auto alone")
        pairs.append((gpu, int(count)))
    asked = sum(count for _, count in pairs)
    if asked > MOST_WORKERS:
        raise ValueError(f"{asked} workers are asked for; {MOST_WORKERS} is the most")
    return tuple(pairs)


def worker_env(value: object) -> object:
    """Read `K=V,K=V`; a comma not followed by `NAME=` belongs to the value before it."""
    if not isinstance(value, str):
        return value
    pairs: list[tuple[str, str]] = []
    for number, part in enumerate(re.split(r",(?=\s*[A-Za-z_][A-Za-z0-9_]*=)", value), start=1):
        name, equals, text = part.strip().partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"part {number} is not NAME=VALUE")  # never the part itself: it may be a secret
        if name in MANAGED_BY:
            raise ValueError(f"{name} is set by Chimera for each worker; what decides it: {MANAGED_BY[name]}")
        pairs.append((name, text))
    return tuple(pairs)


def models(value: object) -> object:
    """Read names of models, `a,b:c`."""
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",") if name.strip())


def networks(value: object) -> object:
    """Read addresses and networks, `10.0.0.0/8,::1`, into their usual form; all that is wrong is named."""
    if not isinstance(value, str):
        return value
    networks: list[str] = []
    faults: list[str] = []
    for part in filter(None, map(str.strip, value.split(","))):
        try:
            if "%" in part:
                raise ValueError("a zone is of one machine alone")
            network = ipaddress.ip_network(part, strict=False)
        except ValueError:
            faults.append(f"{part!r} is not an address or a network such as 10.0.0.0/8")
            continue
        if "/" in part and network.network_address != ipaddress.ip_interface(part).ip:
            faults.append(f"{part!r} is an address within {network}; write that, or the address alone")
        elif network.version == 6 and network.network_address.ipv4_mapped:
            faults.append(f"{part!r} is IPv4 written as IPv6; write it as IPv4")
        elif network.prefixlen == 0:
            faults.append(f"{part!r} is everybody; name the proxies")
        networks.append(str(network.network_address if network.num_addresses == 1 else network))
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(networks)


def host(value: object) -> object:
    """Read an address or a host name; IPv6 may have its brackets."""
    if isinstance(value, str) and not re.fullmatch(r"[0-9A-Za-z_.:-]+", value.strip("[]")):
        raise ValueError(f"{value!r} is not an address or host name")
    return value.strip().strip("[]") if isinstance(value, str) else value


def directory(value: object) -> object:
    """Take a folder or file that is named from the root on."""
    if isinstance(value, str) and not value.startswith("/"):
        raise ValueError(f"{value!r} is not an absolute path")
    return value


def token(value: object) -> object:
    """Take a bearer token, which goes into a header as it is."""
    if isinstance(value, str) and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
        raise ValueError("must be printable ASCII characters, with no space at either end")
    return value


def url(value: object) -> object:
    """Take where OpenTelemetry's data goes."""
    # never the text itself: a URL may hold a password
    if isinstance(value, str) and not re.fullmatch(r"https?://[!-~]+", value):
        raise ValueError("must be a URL that begins with http:// or https:// (OTLP over HTTP, usually port 4318)")
    return value


def database_url(value: object) -> object:
    """Take a database's URL by its beginning: the rest may be a secret, and is for the database's driver to judge."""
    if isinstance(value, str) and not re.match(r"(sqlite:////|postgres(ql)?(\+psycopg)?://)[^\x00-\x1f\x7f]+\Z", value):
        raise ValueError("must be sqlite:////ABSOLUTE/PATH or postgresql://USER:PASSWORD@HOST/NAME")
    return value


def choice(value: object) -> object:
    """Read one of a few words, in any case."""
    return value.strip().lower() if isinstance(value, str) else value
