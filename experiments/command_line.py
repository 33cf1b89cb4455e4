"""The config of a command line: its file, and the overrides behind it; what does not exist is said in one line."""

import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from experiments.configs import default
from int_jax import domains
from int_jax.stages import StageError

# --config.domain.name=math, or --config.domain.name with math behind it
DOMAIN = re.compile(r"--?config\.domain\.name(?:=(.*))?")


def define_config(values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
    """The flag --config FILE:VARIANT, and one for each knob: --config.rl.updates=100."""
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    values["config"].parser = _ConfigFile("config", lock_config=False)
    return holder


class _ConfigFile(config_flags.ConfigFileFlagParser):
    """Reads a config file, and gives the config the knobs of the domain that the command line names.

    The types of all overrides are fixed by what this returns, before any of them is set: the knobs of another domain
    than the file's have to be there by then.
    """

    def parse(self, path: str) -> ConfigDict:
        config = super().parse(path)
        if isinstance(config, ConfigDict):  # a file that is not there is said when its config is asked for
            name = named_domain(flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False))
            if name not in (None, config.domain.name):
                config.domain = default.domain(name)
            config.lock()
        return config


def named_domain(argv: Sequence[str]) -> str | None:
    """The value of the last --config.domain.name, None where there is none."""
    found = None
    for given, after in zip(argv, [*argv[1:], None], strict=True):
        if match := DOMAIN.fullmatch(given):
            found = after if match[1] is None else match[1]
    return found


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """The command line; a knob, a config or a flag that does not exist ends in one line that names it.

    Raises: StageError.
    """
    try:
        return values(argv)
    except flags.Error as error:  # that of a config file comes with its traceback, the message last
        raise StageError(str(error).strip().splitlines()[-1].strip()) from None
    except (AttributeError, KeyError) as error:
        # KeyError quotes what it quotes: "'updtes'\\nDid you mean ..."
        missing = re.findall(r"\w+", str(error))[0]
        given = next((a for a in argv if a.partition("=")[0].split(".")[-1] == missing), missing)
        if "config.domain.knobs." in given and (name := named_domain(argv)):
            known = ", ".join(domains.find(name).KNOBS) or "none"
            raise StageError(f"{given}: the domain {name} has no such knob; it has {known}") from None
        raise StageError(f"{given}: there is no such knob; docs/knobs.md has them all") from None
    except OSError as error:
        raise StageError(str(error)) from None
