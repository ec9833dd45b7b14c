"""A Munch that cannot be changed: a misspelt key raises an error instead of being added."""

from typing import Any, NoReturn

from munch import Munch

from utils.config.problems import did_you_mean, nearest


class FrozenMunch(Munch):
    """A read-only nested dict with attribute access; copies and pickles stay frozen.

    Raises:
        AttributeError: a key that is not there is read, or an attribute is assigned or deleted.
        TypeError: an item is assigned, deleted or updated.
    """

    def __init__(self, tree: dict[str, Any]) -> None:
        # dict's own constructor: Munch's would go through update(), which raises here.
        dict.__init__(self, {k: FrozenMunch(v) if isinstance(v, dict) else v for k, v in tree.items()})

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"no key {name!r} in the config{did_you_mean(nearest(name, self))}")

    def __setattr__(self, name: str, *_: object) -> NoReturn:
        raise AttributeError(f"the config is frozen: {name} cannot be changed")

    __delattr__ = __setattr__

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the config is frozen")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenMunch, (self.toDict(),)
