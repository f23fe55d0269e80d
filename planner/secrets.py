"""What must never be shown of a file: tokens, keys and passwords, by the name of their key or by their looks."""

import re

HIDDEN = "<hidden>"
LONGEST_SHOWN = 60

_NAMES = re.compile(
    r"(?:^|[_\-.])(?:token|tokens|secret|secrets|password|passwd|credential|credentials|auth|bearer|webhook|"
    r"(?:api|access|private|secret|signing|session|experiment|license|account|auth|ssh|encryption)[_\-]?key)(?:$|[_\-.\d])"
    r"|apikey|webhook|use_auth_token",
    re.IGNORECASE,
)
_COUNTS = re.compile(r"token(?:s|_indices|izer)|num_|max_|average_|include_|special_|pad_|eos_|bos_|unk_", re.IGNORECASE)
_VALUES = re.compile(
    r"(?i:\b(?:hf|sk|pk|rk|ghp|gho|ghs|ghu|glpat|xox[abprs]|npm|dckr_pat|api|key|wandb|pat)[_-][A-Za-z0-9_\-]{8,})"
    r"|\bgithub_pat_\w{10,}|\bAKIA[0-9A-Z]{12,}|\bAIza[\w\-]{20,}|\beyJ[\w\-]{10,}\.[\w\-]+|-----BEGIN"
    r"|://[^/\s:@]*:[^/\s@]+@|(?:[?&](?:token|key|sig|signature|secret|password)=)\S+"
    r"|\b[0-9a-fA-F]{32,}\b|\b(?=[A-Za-z+/_\-]*\d)(?=[\d+/_\-a-z]*[A-Z])[A-Za-z0-9+_\-]{40,}={0,2}"
)


def is_secret_name(key: str) -> bool:
    """Whether values under such a key are never shown."""
    last = key.rsplit(".", 1)[-1]
    return bool(_NAMES.search(last)) and not (_COUNTS.match(last) and "auth" not in last.lower())


def looks_secret(text: str) -> bool:
    """Whether a text has the looks of a token, a key, a hash, or an address with a password."""
    return bool(_VALUES.search(text))


def shown(value: object, key: str = "") -> str:
    """A value as messages quote it, on one line in ASCII; what may be a secret is hidden."""
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "a section"
    text = ascii(value)
    if is_secret_name(key) or looks_secret(text):
        return HIDDEN
    if isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def shown_key(key: str) -> str:
    """A key as messages quote it: a token that slipped into the place of a key is hidden too."""
    text = ascii(key)[1:-1]
    if looks_secret(text):
        return HIDDEN
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
