"""What may not become a memory, and what becomes one only under quarantine.

Two questions are asked of a text, and each is answered by the end of a sentence, or by nothing if all is well. `junk`:
does it hold something to remember at all? An error page, an apology, our own prompt or the question once more teach
nobody anything. `suspicion`: does it read like an attempt to give orders to whoever reads it? What a web page says may
come back weeks later from the memory, and is then read by a model that trusts it more than a web page; so such a text
is kept out of sight until a person has looked at it. Both go by the wording alone and are no proof of anything: the
second line of defence is `mia.prompt.defuse`, which keeps every memory from posing as structure.

Time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice

from mia.prompt import FENCES
from mia.types import Memory

# How many words in a row must be ours before a text counts as a copy of our request.
_COPIED_WORDS = 8

_TROUBLE = re.compile(
    r"\b(?:internal server error|bad gateway|service unavailable|gateway time-?out|too many requests|"
    r"rate limit (?:exceeded|reached)|invalid api key|insufficient quota|context length exceeded|connection refused|"
    r"traceback \(most recent call last\)|as an ai (?:language )?model|i(?:'m| am) sorry, (?:but )?i)\b"
    r"|<!doctype html|<html\b|\{\s*\"(?:error|detail)\"",
    re.IGNORECASE,
)
# What a whole text is if it begins so: a memory's question or workflow never does.
_BEGINS_WITH_TROUBLE = re.compile(
    r"\W{0,20}(?:\d{1,3}[.)]\s{1,4})?\W{0,20}(?:"
    r"(?:http(?:/\d(?:\.\d)?)?\s{0,4})?(?:error\s{0,4}:?\s{0,4})?(?:code\s{0,4}:?\s{0,4})?[45]\d\d[\s:,.-]{1,4}"
    r"(?:bad request|unauthorized|payment required|forbidden|(?:page )?not found|method not allowed|request time-?out|"
    r"gone|too many requests|internal server error|not implemented|bad gateway|service (?:temporarily )?unavailable|"
    r"gateway time-?out)\b"
    r"|(?:http|error|status)(?: status)?(?: error)?(?: code)?:?\s{0,4}[45]\d\d\b"
    r"|(?:[a-z_.]{1,60}\.)?[a-z]{1,40}(?:error|exception):\s"
    r"|error:\s|fatal:\s|traceback\b"
    r"|<(?:!doctype|html|head|body|\?xml)\b|\{\s{0,9}\"(?:error|errors|detail)\""
    r"|access denied\b|just a moment\.\.\.|checking your browser|(?:please )?enable javascript"
    r"|you (?:have )?(?:exceeded|reached) your (?:\w{1,20} ){0,3}(?:quota|limit)|rate limit|quota exceeded"
    r"|i(?:'m| am) (?:very |so )?(?:sorry|unable|not able)\b"
    r"|i (?:cannot|can't|can not) (?:help|assist|answer|fulfil|comply)"
    r"|(?:my )?apologies\b|i apologi[sz]e\b|as an? (?:ai|artificial intelligence|large language model|language model)\b"
    r")",
    re.IGNORECASE,
)
_STEP_NUMBER = re.compile(r"^[ \t*_]{0,9}\d{1,4}[.)]", re.MULTILINE)
_WORD = re.compile(r"\w+")
_FILLERS = frozenset(("question", "answer", "search", "find", "for", "the", "to"))
"""Words that add nothing to a question which a workflow repeats."""


def trouble(text: str) -> str:
    """The words of an error message or an apology in a text, as they stand there; empty if there are none."""
    found = _TROUBLE.search(text)
    return found.group() if found else ""


def copies(text: str, prompt: str) -> bool:
    """Whether a text shares a run of eight words with one of our prompts."""
    ours = _runs(prompt)
    words = _WORD.findall(text.lower())
    return any(
        run in ours for run in zip(*(islice(words, start, None) for start in range(_COPIED_WORDS)), strict=False)
    )


@lru_cache(maxsize=64)
def _runs(prompt: str) -> frozenset[tuple[str, ...]]:
    """Every run of `_COPIED_WORDS` words."""
    words = _WORD.findall(prompt.lower())
    return frozenset(tuple(words[start : start + _COPIED_WORDS]) for start in range(len(words) - _COPIED_WORDS + 1))


def junk(question: str, workflow: str, *, prompts: Sequence[str] = ()) -> str:
    """Why this is no memory, as the end of a sentence; empty if it may be one.

    `prompts` are texts of ours, as written, that a model may have repeated.
    """
    for name, text in (("question", question), ("workflow", workflow)):
        if not _has_letters(text):
            return f"its {name} holds no words"
        # Somebody may well ask about "I'm Sorry I Haven't a Clue".
        if _BEGINS_WITH_TROUBLE.match(text.lstrip()) and not (text is question and "?" in text):
            return f"its {name} is an error message or an apology"
        if any(copies(text, prompt) for prompt in prompts):
            return f"its {name} repeats a prompt of ours"
    # A question may be about an error, and then its workflow is too.
    found = trouble(workflow)
    if found and found.lower() not in question.lower():
        return "its workflow holds an error message or an apology"
    if _only_repeats(question, workflow):
        return "its workflow only repeats the question"
    return ""


def _has_letters(text: str) -> bool:
    return any(map(str.isalnum, text))


def _only_repeats(question: str, workflow: str) -> bool:
    asked = _WORD.findall(question.casefold())
    told = _WORD.findall(_STEP_NUMBER.sub(" ", workflow).casefold())
    return set(told) <= {*asked, *_FILLERS} and len(told) <= 2 * len(asked) + len(_FILLERS)


# ── orders to whoever reads it ────────────────────────────────────────────────────────────────────────────────────

# A few words between; each of bounded length, so that nothing is walked again and again.
_FEW = r"(?:[\w',-]{1,24}+ ){0,4}"
_INSTRUCTIONS = (
    r"(?:instruction|prompt|direction|directive|rule|guideline|command|order|constraint|message|safeguard)s?"
)
_READER = r"(?:ai|a\.i\.|llm|language model|chat ?bot|assistant|agent|(?:ai|language) (?:model|agent|assistant))s?"

_BEFORE = r"(?:previous|prior|above|preceding|earlier|foregoing|existing|original|initial|system|safety|your)"
_REQUESTS = r"(?:questions?|quer(?:y|ies)|prompts?|requests?)"
_SAY = r"(?:answer|respond|reply|say|output|return|write|print)"
_BETRAY = r"(?:tell|inform|mention|reveal|alert|notify|show|warn|disclose|let)"

_ORDERS: tuple[tuple[str, str], ...] = (
    (
        "it tells its reader to ignore instructions",
        rf"\b(?:ignore|disregard|forget|(?:do not|don't|stop) (?:follow|obey)(?:ing)?) {_FEW}"
        rf"(?:{_BEFORE}|these|all|any) {_FEW}{_INSTRUCTIONS}\b"
        rf"|\b(?:override|bypass) {_FEW}{_BEFORE} {_FEW}{_INSTRUCTIONS}\b"
        r"|\b(?:ignore|disregard|forget) (?:everything|anything|all) (?:above|before|previous|prior"
        r"|that (?:was|came|has|you)|you (?:know|were|have|had|'ve)|said (?:above|before|so far))"
        r"|\b(?:ignore|disregard) (?:the )?(?:above|previous|preceding)\b"
        r"|\bignoriere? (?:bitte )?(?:alle|die|deine|sämtliche) (?:[\w-]{1,24} ){0,3}(?:anweisung|instruktion|regel)"
        r"|\b(?:ignore[rz]?|oublie[rz]?) (?:[\w']{1,24} ){0,3}(?:instructions|consignes|règles)\b"
        r"|\b(?:ignora|ignore|olvida|olvide) (?:[\w']{1,24} ){0,3}(?:instrucciones|instruções|istruzioni|reglas)\b"
        r"|(?:忽略|无视|無視|忘记|忘記)[^。]{0,10}(?:指令|指示|提示|说明|說明|规则|規則)",
    ),
    (
        "it gives its reader another role",
        r"\byou are now (?:an? |in |my |dan\b|no longer|free (?:of|from)|unrestricted|going to|acting|playing)"
        r"|\bfrom now on,? you(?: are|'re"
        r"| (?:will|must|shall|should) (?:be|act|answer|respond|reply|behave|always|never)) "
        rf"|\b(?:pretend|imagine) (?:that )?you(?: are|'re) an? {_FEW}{_READER}\b"
        r"|\bact as (?:if you (?:are|were) )?an? (?:unrestricted|unfiltered|uncensored|jailbroken)\b"
        r"|\b(?:enable|enter|activate|switch to) (?:developer|dan|god|debug|jailbreak) mode\b|\bdo anything now\b",
    ),
    (
        "it speaks of a system prompt or of hidden instructions",
        r"\bsystem prompts?\b"
        r"|\b(?:developer|system) (?:message|instruction)s? (?:says|above|below|is|was|update|override)\b"
        r"|\b(?:new|updated|hidden|secret|real|actual) (?:system )?instructions?:"
        rf"|\b(?:reveal|print|repeat|output|show|leak|disclose|tell me) {_FEW}(?:your|the system|initial|hidden) {_FEW}"
        r"(?:instructions?|prompts?)\b",
    ),
    (
        "it speaks to an agent instead of telling what was done",
        r"\b(?:attention|note to|notice to|message (?:to|for)|instructions? (?:to|for)|dear|hey) "
        rf"(?:all |any |the |every )?{_READER}\b"
        r"(?! ?(?:of|for|general|coach|manager|director|professor|secretary|editor))"
        rf"|\bif you(?: are|'re) an? {_READER}\b"
        rf"|\b{_READER} (?:reading|processing|summari[sz]ing|parsing|crawling) this\b"
        r"|\byou must (?:now |always |first |immediately )?(?:call|invoke|run|execute|use) (?:the |this |a )?"
        r"(?:[\w-]{1,24} )?(?:tool|function|command|code|script)\b",
    ),
    (
        "it asks to hide something from the user",
        rf"\b(?:do not|don't|dont|never|must not) (?:\w{{1,16}} )?{_BETRAY} {_FEW}(?:the |your |to )?users?\b"
        rf"|\bwithout (?:telling|informing|mentioning|alerting|notifying|warning) {_FEW}(?:the |your |to )?users?\b"
        r"|\b(?:hide|conceal|keep) (?:this|it|that) (?:secret |hidden )?from (?:the |your )?users?\b",
    ),
    ("it asks to carry data off", r"\bexfiltrat(?:e|es|ing|ion)\b"),
    (
        "it dictates answers to other questions",
        rf"\b(?:always|only|must|should|shall) {_SAY}\b[^.]{{0,60}}"
        r"\b(?:every|any|all|each|whatever|no matter|regardless|other|future)\b[^.]{0,24}"
        rf"\b(?:{_REQUESTS}|asked|asks?)\b"
        rf"|\b{_SAY} [^.]{{1,60}} (?:to|for|on) (?:every|any|all|each|future|other|subsequent) "
        rf"(?:\w{{1,16}} )?{_REQUESTS}\b"
        r"|\b(?:whatever|no matter what|regardless of (?:what )?)(?: the)? (?:question|user|query)"
        r" (?:is|asks|was|says)?"
        rf"[^.]{{0,24}}\b{_SAY}\b"
        rf"|\b{_SAY}\b[^.]{{0,40}}\b(?:regardless of|no matter what) (?:the |is )?(?:question|asked|user)",
    ),
)
_MARKS = re.compile(
    rf"<\s*+/?+\s*+(?:{'|'.join(FENCES)})\b|<[|｜][\w▁｜ -]{{1,40}}[|｜]>|<</?sys>>|\[/?(?:inst|sys|system)\]"
    r"|</?(?:start_of_turn|end_of_turn|bos|eos|system|assistant|tool_response|function_calls?|invoke)>"
    r"|(?:^|\n)[ \t]{0,8}(?:#{1,4} ?(?:system|instruction|assistant|human|response)s? ?:?[ \t]{0,8}(?:\n|$)"
    r"|(?:system|assistant|human|ai) ?: )"
)
# Tag characters spell hidden text; they are in use for the flags of England, Scotland and Wales alone.
_FLAGS = re.compile("\U0001f3f4[\U000e0061-\U000e007a]{1,6}\U000e007f")
# With what opens a change of direction; what closes one is left over in real text, and does nothing alone.
_HIDDEN = re.compile("[\U000e0000-\U000e007f\u202a\u202b\u202d\u202e\u2066-\u2068]")
_ZERO_WIDTH = {ord(letter): None for letter in "\u00ad\u200b\u200c\u200d\u2060\ufeff\u180e"}
# Forms that read the same: full width, and typographic apostrophes.
_PLAIN = {**{0xFF01 + offset: 0x21 + offset for offset in range(94)}, 0x3000: 0x20, 0x2019: 0x27, 0x02BC: 0x27}

_ORDER = tuple((reason, re.compile(pattern)) for reason, pattern in _ORDERS)
_ADDRESS = re.compile(r"https?://|\bwww\.|@[\w-]{1,60}\.")
_SEND = re.compile(
    r"\b(?:send|post|upload|forward|transmit|submit|e-?mail|leak|copy|append|report|deliver)\b(?![-'\"])"
)
_GOODS = re.compile(
    r"\b(?:conversation|histor(?:y|ies)|data|keys?|passwords?|secrets?|tokens?|memor(?:y|ies)|contents?|answers?|results?|"
    r"prompts?|context|credentials?|everything|files?|findings|queries|question)\b"
)
_TOWARDS = re.compile(r"\b(?:to|at|via)[ :\"'(`<]{1,6}(?:[\w-]{1,20}:? ){0,3}[\"'(`<]{0,3}[\w.+-]{0,40}\Z")
_BEFORE_ADDRESS = 120


def suspicion(text: str) -> str:
    """Why a text reads like an attempt to give orders to an agent, as the end of a sentence; empty if it does not."""
    if _HIDDEN.search(_FLAGS.sub("", text)):
        return "it holds hidden characters"
    lower = text.translate(_ZERO_WIDTH).translate(_PLAIN).lower()
    if _MARKS.search(lower):
        return "it holds the marks of a conversation or of our protocol"
    folded = " ".join(lower.split())
    for reason, pattern in _ORDER:
        if pattern.search(folded):
            return reason
    for address in _ADDRESS.finditer(folded):
        before = folded[max(0, address.start() - _BEFORE_ADDRESS) : address.start()]
        sent = _SEND.search(before)
        if sent and _GOODS.search(before, sent.end()) and _TOWARDS.search(before, sent.end()):
            return "it asks to carry data off"
    return ""


def suspicion_of(memory: Memory) -> str:
    """Why a memory is to be looked at before any agent reads it: the first suspicion of all its texts that an agent is
    shown, reviews included; empty if there is none."""
    texts = (memory.question, memory.caption, memory.workflow, memory.plan, memory.incorrect_plan)
    reviews = (review.reason for review in memory.reviews)
    return next(filter(None, map(suspicion, (*texts, *reviews))), "")
