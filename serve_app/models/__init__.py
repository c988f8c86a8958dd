"""The default model: from a package into the user's cache, checked by checksum."""

from serve_app.models.resolve import resolve_model

__all__ = ["resolve_model"]
