"""The libraries' notes off the terminal: what goes wrong is an error of ours, and stdout and stderr are the report's."""

import logging
import warnings


def quiet() -> None:
    """Silence transformers, bitsandbytes and Python's warnings for the rest of the process."""
    import transformers

    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
