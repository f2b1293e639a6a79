"""Hooks of Schemathesis: what the document of the interface cannot say.

Of the requests that are made up from it, two of three get names that the project has, so that they come past the first
look-up. Training sets and backups are only ever written into the project's folder `scratch`, and jobs are kept from large views.

The server's address is in EADEM_URL, the project is the working folder.
"""

import json
import os
import urllib.request
import zlib
from pathlib import Path

import schemathesis

SCRATCH = Path("scratch").absolute()
SMALL_VIEWS = ["plane_profile", "airport_shape"]
# What goes together: features, an entity id and the same keys in a body.
QUESTIONS = [
    (["seats", "plane_profile:maker", "tail_number:*"], "N14228", {"tailnum": "N14228"}),
    (["plane_profile@1:seats"], "N0", {"tailnum": "N0"}),
    (["aircraft_legs:*"], "%C3%A9", {"tailnum": "é"}),
    (["airport_weather:gusty", "airport_shape:place"], "JFK", {"airport": "JFK"}),
    (["nearest_hubs:*"], "LAX", {"airport": "LAX"}),
    (["route_history:*"], "JFK,LAX", {"origin": "JFK", "dest": "LAX"}),
    (["seats", "gusty"], "JFK", {"tailnum": "N24211", "airport": "JFK"}),
    (["nothing"], "N14228", {"tailnum": 1}),
]
INSTANTS = ["2013-07-01T12:00:00Z", "2013-02-28T23:59:59.999999Z", "1970-01-01T00:00:00Z"]
ARROW_STREAM = "application/vnd.apache.arrow.stream"


def ask(path):
    request = urllib.request.Request(os.environ["EADEM_URL"] + path)
    request.add_header("Authorization", "Bearer " + os.environ["EADEM_TOKEN"])
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def names_of(kind):
    """Names, and those of versions where there are any."""
    objects = [thing if "name" in thing else thing["newest"] for thing in ask(f"/registry/{kind}")[kind]]
    names = [thing["name"] for thing in objects]
    return names + [f"{name}@1" for name in names] if kind in ("views", "services") else names


KNOWN = {kind: names_of(kind) for kind in ["entities", "sources", "views", "services"]}
TRANSFORMS = [(one["name"], one["digest"]) for one in ask("/transforms")["transforms"]]
JOBS = [job["id"] for job in ask("/jobs")["jobs"]]
TOKENS = [token["id"] for token in ask("/tokens")["tokens"]]
PROJECTS = [project["name"] for project in ask("/projects")["projects"]]
DATASETS = [dataset["id"] for dataset in ask("/datasets")["datasets"]]
DEFINITIONS = [
    {"path": str(path), "text": path.read_text()} for path in sorted(Path("features").glob("*.toml"))
]
REFERENCES = {f"transforms/{name}.wasm": digest for name, digest in TRANSFORMS}
COMPONENTS = [path.read_bytes() for path in sorted(Path("transforms").glob("*.wasm"))]


@schemathesis.serializer("application/wasm")
def component(context, value):
    """A component is what it is."""
    return value if isinstance(value, bytes) else str(value).encode()


class Choice:
    """Choices that depend on the request alone, so that a run can be repeated."""

    def __init__(self, case):
        text = repr((case.method, case.operation.path, case.path_parameters, case.query, case.body))
        self.number = zlib.crc32(text.encode(errors="replace"))

    def below(self, bound):
        self.number, rest = divmod(self.number * 2654435761 % (1 << 40), bound)
        return rest

    def of(self, things):
        return things[self.below(len(things))]


@schemathesis.hook
def before_call(context, case, kwargs):
    choice = Choice(case)
    if choice.below(3) > 0:
        use_known_names(case, choice)
    keep_from_harm(case)


def use_known_names(case, choice):
    path, method = case.operation.path, case.method.upper()
    parts = dict(case.path_parameters or {})
    if path.startswith("/transforms/"):
        parts["name"], digest = choice.of(TRANSFORMS)
        if "digest" in parts:
            parts["digest"] = digest
    elif path.startswith("/projects/"):
        parts["name"] = choice.of(PROJECTS)
    elif "name" in parts and "kind" in parts:
        # Of lineage the kind is a single object.
        kind = {"view": "views", "service": "services", "source": "sources", "entity": "entities"}
        parts["name"] = choice.of(KNOWN.get(kind.get(parts["kind"], parts["kind"]), ["seats", "plane_profile"]))
    if "view" in parts:
        parts["view"] = choice.of(KNOWN["views"])
    if path.startswith("/datasets/"):
        parts["id"] = choice.of(DATASETS or ["none"])
    if (path, method) == ("/tokens/{id}", "GET"):
        parts["id"] = choice.of(TOKENS)
    if path.startswith("/jobs/") and (path, method) != ("/jobs/{id}", "POST"):
        parts["id"] = choice.of(JOBS or ["none"])
    if path.startswith("/features"):
        use_known_features(case, choice, parts)
    if case.path_parameters:
        case.path_parameters = parts
    if (path, method) == ("/transforms", "POST"):
        component = choice.of(COMPONENTS)
        case.body = component[: choice.below(len(component))] if choice.below(4) == 0 else component
    # A plan looks at every source, which takes a hundred times as long as any other request.
    if path in ("/registry/plan", "/registry/apply") and isinstance(case.body, dict) and choice.below(10) == 0:
        own = case.body.get("files")
        case.body["files"] = DEFINITIONS + (own if isinstance(own, list) and choice.below(4) == 0 else [])
        case.body["transforms"] = REFERENCES
        if choice.below(4) > 0:
            case.body.pop("revision", None)


def use_known_features(case, choice, parts):
    features, entity_id, keys = choice.of(QUESTIONS)
    if "entity_id" in parts:
        parts["entity_id"] = entity_id
    query = dict(case.query or {})
    query.pop("request.<field>", None)
    if case.operation.path != "/features/batch":
        query.pop("service", None)
        query.pop("entity", None)
        query["features"] = ",".join(features)
    if case.operation.path == "/features":
        query["entity_id"] = entity_id
    for name, known in [("timestamp", INSTANTS), ("as_stored", ["1", "0", "2100-01-01T00:00:00Z"])]:
        if name in query:
            query[name] = choice.of(known)
    if choice.below(4) > 0:
        query.pop("as_stored", None)
    if choice.below(4) == 0:
        # Metadata come with JSON only.
        query.pop("include", None)
        case.headers = {**(case.headers or {}), "Accept": ARROW_STREAM}
    case.query = query
    if isinstance(case.body, dict):
        count = choice.below(4)
        case.body.pop("service", None)
        case.body.pop("request", None)
        case.body |= {"features": features, "entities": [keys] * count}
        if "timestamps" in case.body:
            case.body.pop("timestamp", None)
            case.body["timestamps"] = [choice.of(INSTANTS) for _ in range(count)]


def keep_from_harm(case):
    body = case.body
    if not isinstance(body, dict):
        return
    if case.operation.path == "/registry/apply" and isinstance(body.get("files"), list):
        # A registry without definitions would answer no more than 404.
        has_own = any(isinstance(file, dict) and file.get("path") == DEFINITIONS[0]["path"] for file in body["files"])
        body["files"] = body["files"] if has_own else DEFINITIONS + body["files"]
    if case.operation.path == "/projects/{name}/quotas":
        # What is used up answers no more than 429.
        enough = {name: max(most, 10**12) for name, most in body.items() if type(most) is int and most >= 0}
        body |= {name: min(most, 2**63 - 1) if body[name] < 2**63 else body[name] for name, most in enough.items()}
    if case.operation.path != "/jobs/{id}":
        return
    kind = (case.path_parameters or {}).get("id")
    for name, ending in [("output", "parquet"), ("out", "backup"), ("from", "backup")]:
        # Instants of a backfill are none of them.
        if isinstance(body.get(name), str) and (name != "from" or kind == "restore"):
            number = zlib.crc32(body[name].encode(errors="replace"))
            body[name] = str(SCRATCH / f"{number}.{ending}")
    if kind in ("backfill", "materialize", "compact") and isinstance(body.get("views", []), list) and not body.get("views"):
        body["views"] = SMALL_VIEWS
