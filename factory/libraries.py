"""How the model libraries behave inside this program."""


def quiet_model_libraries() -> None:
    """Keep diffusers and transformers from writing progress bars and remarks between this program's own lines.

    To be called before the models' modules are imported, for some remarks are made at import.
    """
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    for log in (diffusers_log, transformers_log):
        log.set_verbosity_error()
        log.disable_progress_bar()
