"""Label Studio's labelling configs: which Choices tag over which Text tag offers our labels, under which names.

Not here: tasks, annotations and predictions (label_studio.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from toxicity.labels import LABELS, canonical_label

DEFAULT_CONFIG = f"""<View>
  <Text name="text" value="$text"/>
  <Choices name="toxicity" toName="text" choice="multiple">
    {" ".join(f'<Choice value="{label}"/>' for label in LABELS)}
  </Choices>
</View>"""
"""The labelling config that README recommends, and that counts where a caller sends none."""


class LabelStudioError(ValueError):
    """What Label Studio (or whoever calls in its place) sent cannot be used; the message says why and what would."""


class LabellingConfigError(LabelStudioError):
    """A labelling config that does not fit. The message quotes the config alone, so a log may hold it."""


@dataclass(frozen=True)
class LabellingConfig:
    """What of a labelling config matters here: a Choices tag over a Text tag. `choices` maps our label to theirs.

    `offered` holds every choice of the tag, whatever it means; `tag_names` the names of all tags.
    """

    from_name: str
    to_name: str
    text_key: str
    choices: Mapping[str, str]
    offered: frozenset[str]
    tag_names: frozenset[str]


@lru_cache(maxsize=256)
def read_config(label_config: str) -> LabellingConfig:
    """Find the Choices tag over a Text tag that offers most of the six labels.

    Raises:
        LabellingConfigError: there is none; the message says what is missing.
    """
    try:
        root = fromstring(label_config)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise LabellingConfigError(f"The labelling config is not XML that can be read ({error}).") from error
    texts = {name: tag.get("value", "") for tag in root.iter("Text") if (name := tag.get("name"))}
    if not texts:
        raise LabellingConfigError(
            'The labelling config has no <Text name="text" value="$text"/> tag, so there is no comment to read.'
        )
    tag_names = frozenset(name for tag in root.iter() if (name := tag.get("name")))
    fitting, misses = [], []
    for tag in root.iter("Choices"):
        name, target, choices = tag.get("name"), tag.get("toName"), _choices(tag)
        if name is None or target not in texts:
            misses.append(f"<Choices name={name!r}> has toName={target!r}, which is no Text tag ({', '.join(map(repr, texts))})")
        elif not choices:
            misses.append(f"<Choices name={name!r}> offers none of {', '.join(LABELS)}")
        elif tag.get("choice", "single") != "multiple":
            misses.append(f'<Choices name={name!r}> takes one choice; a comment can bear several: set choice="multiple"')
        else:
            fitting.append(LabellingConfig(name, target, texts[target].removeprefix("$"), choices, _offered(tag), tag_names))
    if not fitting:
        raise LabellingConfigError(f"The labelling config does not fit: {'; '.join(misses) or 'it has no Choices tag'}.")
    return max(fitting, key=lambda config: len(config.choices))


def _choices(tag: Element) -> dict[str, str]:
    """Map our labels to what a region has to carry: the Choice's alias where there is one, else its value."""
    choices: dict[str, str] = {}
    for choice in tag.iter("Choice"):
        names = [name for name in (choice.get("alias"), choice.get("value")) if name]
        label = next((label for name in names if (label := canonical_label(name))), None)
        if label is not None:
            choices.setdefault(label, names[0])
    return {label: choices[label] for label in LABELS if label in choices}


def _offered(tag: Element) -> frozenset[str]:
    return frozenset(name for choice in tag.iter("Choice") for key in ("alias", "value") if (name := choice.get(key)))
