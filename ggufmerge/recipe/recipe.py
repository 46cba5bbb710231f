"""A recipe as the engine and Python programs hold it: its keys, and where they come from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, TypedDict

from pydantic import BaseModel, PrivateAttr

from ggufmerge.errors import GgufmergeError
from ggufmerge.recipe.document import NAME, Document, Location
from ggufmerge.recipe.load import OPTIONS, read_documents, read_text
from ggufmerge.recipe.plain import plain, written
from ggufmerge.recipe.reference import ModelReference
from ggufmerge.recipe.schema import AUTO, RecipeKeys
from ggufmerge.text import first_few, printable
from ggufmerge.types import FileType


class Options(TypedDict, total=False):
    """What wins over the keys of a recipe: the arguments of `Recipe.with_options`, for those who pass them on."""

    out_type: str | None
    imatrix: Sequence[str | os.PathLike[str]]
    calibration: Sequence[str | os.PathLike[str]]
    rounding: str | None
    noise_aware: str | None
    max_size: str | int | None
    max_bpw: float | str | None


_CHANGED = " (changed)"  # after the name of a file whose recipe a program has changed


@dataclass(frozen=True)
class _Origin:
    """What a recipe was made from; that of one made by hand says nothing.

    name: of the file, for messages.  folder: that relative paths of models start from.  stages: the other documents of
    the file.  files: name of a stage -> the GGUF file that it was built into.
    """

    text: str = ""
    name: str = NAME
    folder: str = "."
    document: Document | None = None
    warnings: tuple[str, ...] = ()
    stages: tuple[Recipe, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


class Recipe(RecipeKeys):
    """A whole recipe. Exactly one of `models` and `slices` is given."""

    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    @classmethod
    def _of(cls, keys: RecipeKeys, origin: _Origin) -> Recipe:
        """A recipe of keys that are checked."""
        values = {name: getattr(keys, name) for name in RecipeKeys.model_fields}
        recipe = cls.model_construct(keys.model_fields_set, **values)
        recipe._origin = origin
        return recipe

    @property
    def text(self) -> str:
        """The recipe as it was written; with options, as it would have to be written (`with_options`)."""
        return self._origin.text

    @property
    def origin(self) -> str:
        """The file name the recipe came from, for messages."""
        return self._origin.name

    @property
    def title(self) -> str | None:
        """What the recipe calls its result: its name, or that of its file; None when it has neither."""
        return self.name or (None if self.origin == NAME else Path(self.origin).stem)

    @property
    def folder(self) -> str:
        """The folder that relative model paths start from."""
        return self._origin.folder

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was read but has no effect, one line each."""
        return self._origin.warnings

    @property
    def stages(self) -> tuple[Recipe, ...]:
        """The other documents of the recipe's file, each after those that it is made from; all have names."""
        return self._origin.stages

    def with_changes(self, **changes: Any) -> Recipe:
        """A checked recipe in which these keys have other values; None leaves a key out.

            recipe.with_changes(out_type="Q6_K", parameters={"weight": 0.3})

        A value replaces everything under its key, and is written as in `load_recipe` of a mapping. The recipe keeps its
        folder, its name, and the documents that it is made from. RecipeError says what does not fit.
        """
        recipe = load_recipe(self)
        data = [stage.as_written() for stage in recipe.stages]
        final = {key: value for key, value in (recipe.as_written() | changes).items() if value is not None}
        name = recipe.origin if recipe.origin == NAME else f"{recipe.origin.removesuffix(_CHANGED)}{_CHANGED}"
        return _read(written([*data, final]), name, recipe.folder, has_lines=False)

    def with_options(
        self,
        *,
        out_type: str | None = None,
        imatrix: Sequence[str | os.PathLike[str]] = (),
        calibration: Sequence[str | os.PathLike[str]] = (),
        rounding: str | None = None,
        noise_aware: str | None = None,
        max_size: str | int | None = None,
        max_bpw: float | str | None = None,
    ) -> Recipe:
        """The recipe that is in effect when options win over its keys: its text makes the same file without them.

        out_type: a file type that wins over out_type, out_dtype, dtype and like.
        max_size, max_bpw: a budget for which types are chosen; wins over all of these, and out_type over the recipe's.
        imatrix, calibration: files, whose paths start from the working folder, that win over both of the recipe's.
        Complaints name the options, or the places of the recipe as it was written. What options do not change is the
        recipe itself. GgufmergeError says which option has no meaning.
        """
        changes: dict[str, Any] = {}
        if out_type is not None:
            changes |= {"out_type": str(type_of_option(out_type)), "like": None}
        for key, files in (("imatrix", imatrix), ("calibration", calibration)):
            if files:
                changes |= {"imatrix": None, "calibration": None, "encoder": None}
                changes[key] = [_from_folder(os.fspath(path), self.folder) for path in files]
        if rounding is not None:
            changes["rounding"] = None if rounding == AUTO else str(rounding)
        if max_size is not None or max_bpw is not None:
            budget = {"max_size": max_size and str(max_size), "max_bpw": max_bpw and str(max_bpw)}
            changes |= {**budget, "out_type": None, "like": None}
        elif changes.get("out_type"):
            changes |= {"max_size": None, "max_bpw": None}
        if noise_aware is not None:
            changes["noise_aware"] = str(noise_aware)
        changes = {
            key: value for key, value in changes.items() if (value or None) != (plain(getattr(self, key)) or None)
        }
        return self._changed_by_options(changes) if changes else self

    def _changed_by_options(self, changes: dict[str, Any]) -> Recipe:
        """With these keys, each of which an option stands for, and its places as they were."""
        recipe = load_recipe(self)
        data = _with_options(recipe, changes)
        text = written([*(stage.as_written() for stage in recipe.stages), data])
        changed = _read(text, NAME, recipe.folder, OPTIONS)
        origin, document = recipe._origin, recipe._origin.document
        assert document is not None
        options = {**document.options} | {key: option for key, option in OPTIONS.items() if key in changes}
        stages = (self._of(stage, replace(stage._origin, text=text)) for stage in recipe.stages)
        document = replace(document, data=data, options=options)
        return self._of(changed, replace(origin, text=text, document=document, stages=tuple(stages)))

    def as_written(self) -> dict[str, Any]:
        """What the recipe's document says, key by key, as YAML has it. What was made by hand is written out."""
        document = self._origin.document
        return dict(document.data) if document else dict(plain(self))

    def __repr__(self) -> str:
        models = [str(reference) for reference in self.references() if reference != self.base_model]
        base = f", base {self.base_model}" if self.base_model is not None else ""
        kind = f", {self.out_type}" if self.out_type else ""
        return f"<Recipe {' + '.join(self.methods)}: {first_few(models, 4)}{base}{kind}>"

    def __str__(self) -> str:
        return repr(self)

    def with_files(self, files: Mapping[str, str]) -> Recipe:
        """The same recipe, with GGUF files in the place of the stages of these names."""
        return self._of(self, replace(self._origin, files=dict(files)))

    def in_folder(self, folder: str) -> Recipe:
        """The same recipe, with relative model paths that start from another folder."""
        return self._of(_with_files_named(self, folder), replace(self._origin, folder=folder))

    def locate(self, reference: ModelReference) -> ModelReference:
        """A reference with the file of the stage that it names; any other stays as it is."""
        return replace(reference, path=self._origin.files.get(reference.path, reference.path))

    def where(self, location: Location) -> str:
        """A place of the recipe as `file:line:column`; "" in one that a command made of its arguments."""
        return self._origin.document.where(location) if self._origin.document else self.origin

    def complaint(self, location: Location, what: str) -> str:
        """A complaint about the recipe that begins with its place."""
        where = self.where(location)
        return f"{where}: {what}" if where else what

    @contextmanager
    def blamed(self, location: Location) -> Iterator[None]:
        """While the block runs, the complaints of errors begin with this place of the recipe."""
        try:
            yield
        except GgufmergeError as error:
            raise error.at(self.where(location))  # noqa: B904 - it is the same error


# what pydantic would show has the validators of all fields in it
Recipe.__signature__ = Signature(
    [
        Parameter(name, Parameter.KEYWORD_ONLY, default=Parameter.empty if field.is_required() else field.get_default())
        for name, field in Recipe.model_fields.items()
    ]
)


def load_recipe(
    source: Recipe | Mapping[str, Any] | str | os.PathLike[str], *, arguments: Mapping[str, str] | None = None
) -> Recipe:
    """A checked recipe from a path, from YAML text (a str with a line break), or from a mapping of the same content.

    Of several documents, the one that no other document names as a model is the recipe, the others are its `stages`.
    Relative model paths start from the recipe file's folder (for text and mappings: the working folder). In a mapping
    paths may be `Path` objects, tuples count as lists, and NumPy's numbers as Python's. A Recipe that was loaded comes
    back as it is; one that was made by hand is checked. RecipeError lists what is wrong in its `lines`, at most 20, as
    `file:line:column: what is wrong and what to do`; of a mapping, the keys take the place of the line:
    `models[1].parameters.weight: ...`.

    arguments: for a text that a command made of its arguments: the options that stand for keys. Complaints then name an
    option, or nothing, where they would name a line that nobody has written.
    """
    if isinstance(source, Recipe):
        return source if source.text else _read(written([plain(source)]), NAME, ".", has_lines=False)
    if isinstance(source, Mapping):
        return _read(written([source]), NAME, ".", arguments, has_lines=False, strict=arguments is not None)
    if isinstance(source, str) and "\n" in source:
        return _read(source, NAME, ".", arguments, strict=arguments is not None)
    path = Path(source)
    return _read(read_text(path), printable(path.name), str(path.parent))


def _with_options(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What the document of a recipe would say, key by key, with changes that win over it."""
    data = recipe.as_written()
    if isinstance(modules := data.get("modules"), dict):  # what a module says would win
        data["modules"] = {name: {k: v for k, v in keys.items() if k not in changes} for name, keys in modules.items()}
    # the text alone does not know its file, whose name is the result's, unless a model goes by it
    models = {reference.path for document in (recipe, *recipe.stages) for reference in document.references()}
    if recipe.name is None and recipe.title not in models | {stage.name for stage in recipe.stages}:
        data = {"name": recipe.title, **data}
    return {key: value for key, value in {**data, **changes}.items() if value is not None}


def type_of_option(name: str) -> FileType:
    """The file type of this name, which was given as an option, as GgufmergeError says when there is none."""
    try:
        return FileType.parse(str(name))
    except GgufmergeError as error:
        raise error.at(OPTIONS["out_type"]) from None


def _from_folder(path: str, folder: str) -> str:
    """A path that starts from the working folder, as a recipe in another folder writes it.

    Whole paths that lead out of the folder stay whole, and so does what is no path (`ollama:NAME`).
    """
    given = Path(path)
    if path.startswith("~") or (":" in path and not given.exists()):
        return path
    place = os.path.realpath(given.parent)
    try:
        found = Path(os.path.relpath(place, os.path.realpath(folder)), given.name)
    except ValueError:  # on another drive of Windows
        return str(Path(place, given.name))
    return path if given.is_absolute() and found.parts[0] == os.pardir else found.as_posix()


def _read(
    text: str,
    name: str,
    folder: str,
    arguments: Mapping[str, str] | None = None,
    *,
    has_lines: bool = True,
    strict: bool = False,
) -> Recipe:
    """The recipe in a text, with the other documents of it as its stages."""
    stages: list[Recipe] = []
    for loaded in read_documents(text, name, arguments, has_lines=has_lines, strict=strict):
        origin = _Origin(text, name, folder, loaded.document, loaded.warnings)
        stages.append(Recipe._of(_with_files_named(loaded.keys, folder), origin))
    *others, final = stages
    return Recipe._of(final, replace(final._origin, stages=tuple(others)))


def _with_files_named(value: Any, folder: str) -> Any:
    """Keys of a recipe in which a reference such as `a+b.gguf` means the file of that name where there is one."""
    if isinstance(value, ModelReference):
        return value.as_file(folder) if value.adapters else value
    if isinstance(value, BaseModel):
        fields = {name: (old, _with_files_named(old, folder)) for name, old in value}
        changed = {name: new for name, (old, new) in fields.items() if new is not old}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, list | tuple) and any(isinstance(item, BaseModel) for item in value):
        items = [_with_files_named(item, folder) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)
    return value
