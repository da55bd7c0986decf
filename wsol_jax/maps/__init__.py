"""What is done with a map once it exists; scoring and the store need no JAX."""

from typing import Any

Key = tuple[str, str]  # (method, layer), by which maps go
# In place of a class index, where the target is no single class; and in [B,K] where an image has
# fewer classes than others.
NO_CLASS = -1


class UnknownMap(KeyError):
    """There is no such map."""

    def __str__(self) -> str:
        return str(self.args[0])


class Maps(dict[Key, Any]):
    """Maps by (method, layer); one of the two alone is enough where it has one map."""

    def __missing__(self, key: Any) -> Any:
        return self[self.key(key)]

    def key(self, name: Any) -> Key:
        """The (method, layer) of the map that goes by a key, a method or a layer.

        Raises:
            UnknownMap: there is none, or there are several; the message lists them.
        """
        if name in self:
            return name
        found = [key for key in self if name in key]
        if len(found) == 1:
            return found[0]
        several = (
            f'{len(found)} maps go by {name!r}, take one of'
            if found
            else (f'no map goes by {name!r}; known:')
        )
        raise UnknownMap(f'{several} {", ".join(map(str, found or self)) or "none"}')
