"""A tokenizer in the manner of the Penn Treebank, as caption scores need it, without Java.

It reproduces what the Stanford tokenizer of ``pycocoevalcap`` makes of captions: words, contractions, possessives,
numbers, abbreviations, brackets and quotes. It is not the whole of that program: emoticons, mail addresses, telephone
numbers and SGML are treated roughly. Scores made with it say so.

Source:
    The behaviour of ``edu.stanford.nlp.process.PTBTokenizer -preserveLines -lowerCase`` (CoreNLP 3.4.1).
"""

from __future__ import annotations

import re
import unicodedata

NAME = "mmtune PTB-like tokenizer (unofficial tokeniser)"
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
"""Tokens that are left out before captions are compared. Brackets are lower-cased before, so that they stay."""

_SENTENCE_STARTS = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Now|Once|One"
    "|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|ste|etc|vs|jr|sr|inc|co|corp|ave|blvd|rd|ct|ft|mt|gov|sen|rep|gen|capt|lt|sgt|col|rev|hon"
    "|pres|est|dept|univ|assn|bros|ltd|ph|md|al|cf|jan|feb|mar|apr|jun|jul|aug|sept|sep|oct|nov|dec|mon|tues?|wed"
    "|thu|thurs|fri|calif|ala|ariz|colo|conn|fla|ga|ind|kans?|ky|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?"
    "|wyo|sq|intl|maj|messrs|mme|mlle|supt|adm|atty|brig|cmdr|cpl|insp|pvt|bldg|tel|ext|assoc|asst|comdr|det|lieut"
    "|natl|treas"
)
_CAPITAL_ABBREVIATIONS = "Mass|Ark|Del|Ill|La|Miss|Ore|Pa|Tex|Wash"
_NUMBERED = "nos?|figs?|pp|op|ca"  # abbreviations only before a number

_L, _W = r"[^\W\d_]", r"[^\W_]"  # a letter; a letter or digit
_END = rf"\b(?![-']{_W})"  # the end of a word that nothing is joined to
_AUXILIARY = rf"(?:s|m|d|re|ve|ll)(?!{_W})"
_TOKENS = re.compile(
    rf"""
      </?[A-Za-z]\w*(?:\s+[\w-]+="[^"]*")*\s*/?>                          # a tag
    | (?i:https?)://[^\s<>"()]*[^\s<>"().,;:!?'] | www\.[\w./?=&%-]*[\w/]     # addresses
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)* | [@\#]{_L}\w*
    | \b(?i:can(?=not{_END})|gon(?=na{_END})|got(?=ta{_END})|wan(?=na{_END})|gim(?=me{_END})|lem(?=me{_END}))
    | '(?i:t(?=(?:is|was)\b))
    | {_L}+?(?=(?i:n't)(?!{_L})) | (?i:n't)(?!{_L}) | '(?i:{_AUXILIARY})
    | '[nN]'                                                             # rock'n'roll
    | (?i:s'mores|li'l|nor'easter|e'er|ev'ry|nat'l|cont'd|c'mon|c'est|ol'|'em|'cause|'till?|'?n')(?!{_W})
    | 'n(?!{_W}) | '\d0s\b | '\d\d(?=\s|$)                          # the '90s, in '99
    | (?i:{_ABBREVIATIONS})\.(?!{_W}) | (?:{_CAPITAL_ABBREVIATIONS}|{_CAPITAL_ABBREVIATIONS.upper()})\.(?!{_W})
    | (?i:{_NUMBERED})\.(?=\s*\d)
    | (?i:ph\.d)\.?(?!{_W})
    | {_L}(?:\.{_L})+(?!{_W})\.?                                        # U.S., a.m.
    | {_L}\.(?!{_W}|\s+(?:{_SENTENCE_STARTS})(?:\s|$)) | {_L}\.(?=\d)          # an initial
    | {_L}+(?:[.!?]{_L}+)+                                               # sentences that nothing separates
    | [A-Z]+(?:&[A-Z]+)+ | [Cc]\+\+ | [CcFf]\#
    | {_L}+[aeiouyAEIOUY]'(?!(?i:{_AUXILIARY}))[aeiouA-Z]{_L}*           # ma'am
    | \d+(?:[.,:]\d+)+(?=(?i:am|pm|a\.m|p\.m|lbs?)\b)                    # 10:30am
    | (?:US|A|C)\$ | \d+/\d+/\d+ | \d+/\d+(?=/\d)                          # 12/25/2012
    | (?<!{_W})[+-]\d+(?=-?{_L})                                           # -20s
    | [+-]?(?<!{_W}-)(?:\d+(?:[.,:]\d+)*|[.]\d+)(?:/\d+)?(?:-{_W}+)*(?!/?{_W})
    | [dDoOlL]'{_L}+(?:-{_W}+)*
    | [yYlLdDjJ]'(?={_L})
    | {_W}+(?:(?:-|_+){_W}+)*(?:/{_W}+(?:-{_W}+)*)*                       # words, also with hyphens and slashes
    | \.\.\.+ | [!?]{{2,}} | -- -* | [:;=]-?[()DPp](?!{_W}) | \^_\^ | `` | '' | \*+ | _+
    | \S
    """,
    re.VERBOSE,
)
_ONE_FOR_ALL = str.maketrans(
    {
        **dict.fromkeys("’‘‛", "'"), **dict.fromkeys("“”«»‹›", '"'), **dict.fromkeys("–—―", "--"), "…": " ... ",
        **{sign: f" {sign} " for sign in "¹²³"},
        "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "\xad": None, "\u200b": " ", "\xa0": " ",
    }
)  # fmt: skip
_ESCAPES = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{'"': "''", "£": "#", "€": "$", "¢": "cents", "----": "--", "---": "--"},
}


def tokens(caption: str) -> list[str]:
    """The tokens of a caption in lower case, punctuation included."""
    text = caption.translate(_ONE_FOR_ALL).replace("&amp;", "&")
    text = "".join(char for char in text if ord(char) < 0x10000 and unicodedata.category(char) not in ("Cf", "Mn"))
    found = (_settled(match.group()) for match in _TOKENS.finditer(text))
    return [token for token in found if token]


def comparable(caption: str) -> str:
    """The caption as it is compared: its tokens without punctuation, one blank between them."""
    return " ".join(token for token in tokens(caption) if token not in PUNCTUATION)


def _settled(token: str) -> str:
    token = token.lower()
    if token.startswith("..."):
        return "..."
    if token[0] in ":;=" and len(token) > 1:
        return "".join(_ESCAPES.get(char, char) for char in token)
    return _ESCAPES.get(token, token)
