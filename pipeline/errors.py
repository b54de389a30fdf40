"""The errors potstill raises on purpose.

PotstillError                 exit code 1
├── RecipeError               exit code 2: the recipe or its overrides are invalid
├── UsageError                exit code 2: a command was given something it cannot use
│   └── MissingDependency     an optional package is not installed; says which `pip install` brings it
├── DataError                 a data source that cannot be read, or whose values are unusable
├── ModelError                a model that cannot be built, loaded or run on the data
├── TaskError                 a task of the user's own that cannot be used
├── CacheError                stored outputs of the teacher that are not what they should be, or too many
├── ArtifactError             a saved artifact that does not come back as it was
├── RunFolderError            a run folder that is locked, not writable or from a newer version
├── LostProcessError          another of the processes that work on a run has ended
├── StageError                a stage that cannot do what it was asked
│   └── TrainingError         a training that went wrong, such as a loss that is not finite
└── ExportError               a model that cannot be exported or an engine that cannot be built
    ├── ParityError           an engine that does not compute what the model computes
    └── AuditError            an engine whose layers do not run in the precision asked for

Every message says where, what was wrong and how to mend it.
"""

from typing import ClassVar


class PotstillError(Exception):
    """The base of all errors that potstill raises on purpose; the command line prints them without a traceback."""

    exit_code: ClassVar[int] = 1


class RecipeError(PotstillError):
    """Everything that is wrong with a recipe, in one message with a line for each problem."""

    exit_code: ClassVar[int] = 2


class UsageError(PotstillError):
    """A command line or a call that asks for something impossible."""

    exit_code: ClassVar[int] = 2


class MissingDependency(UsageError):
    """An optional package is missing; the message names the command that installs it."""


class DataError(PotstillError):
    """A data source that cannot be read, or whose values cannot be trained on."""


class ModelError(PotstillError):
    """A model that cannot be built, whose weights do not fit, or that does not run on the data."""


class TaskError(PotstillError):
    """A task of the user's own whose function fails, or returns what is no task."""


class CacheError(PotstillError):
    """Stored outputs of the teacher that are of another one, damaged, or more than may be stored."""


class ArtifactError(PotstillError):
    """A saved artifact that does not reload as it was."""


class RunFolderError(PotstillError):
    """A run folder that cannot be used: locked, not writable, damaged or written by a newer version."""


class LostProcessError(PotstillError):
    """Another of the processes that work on a run together has ended."""


class StageError(PotstillError):
    """A stage that cannot do what the recipe asks of it."""


class TrainingError(StageError):
    """A training that cannot go on, such as one whose loss is no longer finite."""


class ExportError(PotstillError):
    """A model that cannot be exported, or an engine that cannot be built from it."""


class ParityError(ExportError):
    """An engine whose outputs differ from the model it was built from."""


class AuditError(ExportError):
    """An engine that runs fewer layers in the asked precision than the target demands."""
