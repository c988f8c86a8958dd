"""The error tree. Every error that JouleServe raises on purpose is one of these.

EnergyServeError
├── ConfigError        a setting is wrong: the message names file, key and allowed values
├── MeterError         energy cannot be read
│   ├── MeterUnavailable   no such sensor on this host
│   ├── MeterPermission    the sensor is there, this process may not read it
│   └── MeterStale         the sensor stopped moving
├── EngineError        the engine cannot do what was asked
│   ├── EngineDead
│   └── EngineOverloaded
├── ActuationError     a knob could not be set
│   ├── ActuationRefused
│   └── ActuationTimeout
└── ModelError         a fitted model cannot answer
    ├── NotFitted
    └── OutOfRange
"""


class EnergyServeError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(EnergyServeError):
    """A setting is wrong. The message names the file, the key and the allowed values."""


class MeterError(EnergyServeError):
    """Energy cannot be read."""


class MeterUnavailable(MeterError):
    """No such sensor on this host."""


class MeterPermission(MeterError):
    """The sensor exists, but this process may not read it."""


class MeterStale(MeterError):
    """The sensor stopped moving or answers with values from the past."""


class EngineError(EnergyServeError):
    """The engine cannot do what was asked."""


class EngineDead(EngineError):
    """The engine process is gone."""


class EngineOverloaded(EngineError):
    """The engine refuses new work."""


class ActuationError(EnergyServeError):
    """A knob could not be set."""


class ActuationRefused(ActuationError):
    """The value is out of bounds, or this process may not set it."""


class ActuationTimeout(ActuationError):
    """The knob did not answer in time."""


class ModelError(EnergyServeError):
    """A fitted model cannot answer."""


class NotFitted(ModelError):
    """No model has been fitted, or it holds too few samples to be trusted."""


class OutOfRange(ModelError):
    """The question lies outside the range that the model was fitted on."""
