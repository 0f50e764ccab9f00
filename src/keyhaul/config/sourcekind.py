"""What every kind of source has under ``source:``."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final

from keyhaul.config.parts import EVERYWHERE, Flag, Part, setting

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyhaul.config.draft import Draft

PLACE: Final = ("source",)


def kind_setting(name: str) -> Any:  # noqa: ANN401  # a field of a literal's type
    """Return the field ``kind`` of a kind of that name."""
    return setting(name, "What kind of source it is, where neither a URI nor a path's ending says so.", name)


def uri_setting(default: str | None) -> Any:  # noqa: ANN401  # a field of any type
    """Return the field ``uri``."""
    return setting(
        default,
        "A server's database or a file; the scheme or the ending says which kind of source it is.",
        "a URI, a path or embedded",
        Flag("--source", value="URI|PATH", help="Source: a database or a file [embedded].", commands=EVERYWHERE),
        "ETL_SOURCE_URL",
        repr=False,
    )


class SourceKind(Part):
    """What the kinds share.

    A kind whose model has a `path` is a file: a URI of one of its schemes is read into that path, and `uri` stays None.

    Attributes:
        schemes: of the URIs that mean this kind; `words` are whole ones.
        stores: schemes of addresses that are paths of this kind, each as it stands.
        endings: of the paths that mean it, in lower case.
        has_key: whether it has columns that a record is found by.
        needs_key: whether ``key:`` must be given; else the source itself knows what it is cut by.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    stores: ClassVar[tuple[str, ...]] = ()
    words: ClassVar[tuple[str, ...]] = ()
    endings: ClassVar[tuple[str, ...]] = ()
    has_key: ClassVar[bool] = True
    needs_key: ClassVar[bool] = True

    kind: str
    uri: str | None = uri_setting(None)

    @property
    def read_table(self) -> str | None:
        """The table that is read, as a person gave it; None for a query, and where there are no tables."""
        return None

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what makes it the same source, JSON-ready; only texts that a user wrote may hold a secret."""

    @classmethod
    @abstractmethod
    def complete(cls, draft: Draft, body: dict[str, Any]) -> str | None:
        """Fill in the kind's defaults and note what is wrong; return the name of what is read, None without one."""

    @classmethod
    def described(cls) -> str:
        """Return by which URIs and paths it is known, for messages and the documentation."""
        slashes = ":///" if "path" in cls.model_fields else "://"
        ways = [*(f"{scheme}{slashes}" for scheme in cls.schemes), *(f"{store}://" for store in cls.stores), *cls.words]
        if cls.endings:
            ways.append(f"a path that ends in {either(cls.endings)}")
        return either(ways)


def either(names: Iterable[str]) -> str:
    """Return words as a person lists them: a, b or c."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
