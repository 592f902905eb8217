"""Configures the logging of diffusers and transformers."""


def quiet_model_libraries() -> None:
    """Disable progress bars and warnings of diffusers and transformers, which would mix with this program's output.

    Call it before importing model modules, because some warnings are issued at import.
    """
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    for log in (diffusers_log, transformers_log):
        log.set_verbosity_error()
        log.disable_progress_bar()
