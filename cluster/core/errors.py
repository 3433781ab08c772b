"""The one tree of errors that this project raises on purpose, and the exit code that each ends a command with.

    TrainyardError                     an expected error: one message with its remedy, never a stack trace
    ├── UserError                 2    the user can fix it; nothing was written
    │   ├── ConfigError                a flag, a field of a file, or a combination of them
    │   ├── DataError                  missing, empty, malformed or inconsistent input data
    │   │   └── InputError             rows that a model is asked about, which are not what it takes
    │   ├── ResourceError              more workers, CPUs or GPUs than there can ever be
    │   ├── ClusterError               no cluster at the address, a half-dead one, a wrong token, mixed versions
    │   ├── StorageError               not writable, not visible from a node, not there
    │   ├── RunConflictError           another live run has this name, or the run was made with another config
    │   ├── ArtifactError              a model that is not what its manifest or the registry says, or is unsafe
    │   ├── RegistryError              the tracking server cannot be reached, refuses, or does not hold the model
    │   └── NewerVersionError          a checkpoint, a record or prepared data that a newer Trainyard wrote
    ├── TrainingFailedError       1    training itself failed: max_failures spent, loss not finite
    │   ├── FolderGoneError            the run's folder was deleted while it trained
    │   ├── OutOfMemoryError           a worker had not enough memory for a pass
    │   ├── DivergedError              workers that should hold the same weights do not
    │   └── CheckpointError            a checkpoint was not made, or a part of it is missing or damaged
    │       └── NonFiniteStateError    it would have held NaN or infinity
    └── StoppedError              3    stopped, resumable: run the same command again
        └── StorageFullError           the storage filled up or became read-only in the middle

Anything else that escapes is our own bug and fails loudly, with its stack trace.
"""


class TrainyardError(Exception):
    """An expected error. Its text is shown to the user as it is: what was asked, what was found, what to do."""

    exit_code = 1


class UserError(TrainyardError):
    exit_code = 2


class ConfigError(UserError):
    pass


class DataError(UserError):
    pass


class InputError(DataError):
    pass


class ResourceError(UserError):
    pass


class ClusterError(UserError):
    pass


class StorageError(UserError):
    pass


class RunConflictError(UserError):
    pass


class ArtifactError(UserError):
    pass


class RegistryError(UserError):
    pass


class NewerVersionError(UserError):
    pass


class GateError(TrainyardError):
    exit_code = 1


class TrainingFailedError(TrainyardError):
    exit_code = 1


class FolderGoneError(TrainingFailedError):
    pass


class OutOfMemoryError(TrainingFailedError):
    pass


class DivergedError(TrainingFailedError):
    pass


class CheckpointError(TrainingFailedError):
    pass


class NonFiniteStateError(CheckpointError):
    pass


class StoppedError(TrainyardError):
    exit_code = 3


class StorageFullError(StoppedError):
    pass
