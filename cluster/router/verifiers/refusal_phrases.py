"""How refusals begin, per language: regular expressions for the beginning of a sentence, in small letters and
with straight apostrophes.

Narrow on purpose. A letter that says "I'm sorry, but I can't come" is an answer, and so is an essay that
begins with "As a language model grows": so a refusal names what is not done (help, answer, …), or speaks in
the first person as a model.
"""

from __future__ import annotations

_ = r"[^.!?。！？\n]"  # noqa: RUF001
"""Anything within a sentence."""

_EN_SORRY = (
    r"(?:(?:i'm|i am|we're|we are) (?:very |really |truly |so )?(?:sorry|afraid)"
    r"|sorry|(?:my )?apologies|i apologi[sz]e|unfortunately)[,.;:]? (?:but |that )?"
)
_EN_CANNOT = (
    r"(?:can't|cannot|can not|could not|couldn't|won't|will not|must decline|have to decline"
    r"|(?:do not|don't) feel comfortable|am (?:not able|unable|not allowed))"
)
_EN_DO = (
    r"(?:help|assist|provid|answer|fulfil|comply|generat|creat|do that|do this|discuss|engag|share|support"
    r"|respond to|(?:process|complet)(?:e|ing)? (?:this|that|your)|brows"
    r"|access(?:ing)? (?:external|the internet|real-time|live|links?|urls?))"
)

REFUSALS = {
    "en": (
        rf"(?:{_EN_SORRY})?(?:i {_EN_CANNOT}|i'm (?:not able|unable|not allowed))(?: to)? {_EN_DO}",
        r"as an? (?:ai|artificial intelligence)(?: (?:language )?model| assistant| chatbot)?,? (?:i|my)\b",
        r"as an? (?:large )?language model,? (?:i|my)\b",
        rf"i(?:'m| am) (?:just |only )?an? (?:ai|language model)\b{_}{{0,60}}\b(?:can't|cannot|don't)\b",
        (
            r"i (?:don't|do not) have (?:the ability|the capability|real-time|"
            r"access to (?:real-time|live|the internet|current|external|your))"
        ),
    ),
    "de": (
        (
            rf"(?:es )?tut mir (?:sehr |wirklich )?leid{_}{{0,80}}\b(?:nicht|keine?n?)\b{_}{{0,60}}"
            r"(?:helfen|beantworten|bereitstellen|unterstützen|erfüllen|erstellen|behilflich)"
        ),
        rf"(?:leider )?(?:ich kann|kann ich){_}{{0,60}}\bnicht (?:weiter)?(?:helfen|beantworten|erfüllen)",
        (
            r"als (?:eine? )?(?:ki|künstliche intelligenz|(?:ki-|großes )?sprachmodell|ki-assistent)\b,? "
            r"(?:kann|habe|bin|darf) ich"
        ),
    ),
    "fr": (
        (
            rf"(?:(?:je suis |je m'excuse,? )?(?:vraiment )?(?:désolée?|navrée?){_}{{0,30}})?"
            r"je ne (?:peux|puis|suis) (?:malheureusement )?pas (?:en mesure d[e'] ?|capable d[e'] ?)?"
            r"(?:vous |t'|te )?(?:aider|répondre|fournir|assister|accéder à (?:votre|cette) demande)"
        ),
        rf"en tant qu(?:e |')(?:ia|intelligence artificielle|assistant|modèle de langage){_}{{0,20}}\bje\b",
    ),
    "es": (
        (
            rf"(?:(?:lo siento|disculpa|perdón|lamentablemente){_}{{0,30}})?"
            r"no (?:puedo|me es posible) (?:ayudar|responder|proporcionar|asistir|cumplir|ofrecer)"
        ),
        rf"como (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje){_}{{0,20}}, (?:yo )?no\b",
    ),
    "it": (
        (
            rf"(?:(?:mi dispiace|spiacente|purtroppo){_}{{0,30}})?"
            r"non (?:posso|sono in grado di) (?:aiutar|risponder|fornir|assister|soddisfar)"
        ),
        rf"come (?:una? )?(?:ia|intelligenza artificiale|modello linguistico){_}{{0,20}}, non\b",
    ),
    "pt": (
        (
            rf"(?:(?:desculpe|lamento|sinto muito|infelizmente){_}{{0,30}})?"
            r"não (?:posso|consigo) (?:te |lhe |o |a )?(?:ajudar|responder|fornecer|atender|auxiliar)"
        ),
        rf"como (?:uma? )?(?:ia|inteligência artificial|modelo de linguagem){_}{{0,20}}, (?:eu )?não\b",
    ),
    "nl": (
        rf"(?:het )?spijt me{_}{{0,60}}\b(?:niet|geen)\b{_}{{0,40}}(?:helpen|beantwoorden|voldoen)",
        r"als (?:een )?(?:ai|(?:ai-)?taalmodel|kunstmatige intelligentie)\b,? (?:kan|heb|ben|mag) ik",
    ),
    "ru": (
        (
            rf"(?:(?:извините|простите|к сожалению){_}{{0,30}})?я не могу (?:вам )?"
            r"(?:помочь|ответить|предоставить|выполнить|обсуждать)"
        ),
        r"как (?:ии|языковая модель|искусственный интеллект), я",
    ),
    "zh": (
        (
            rf"(?:很|非常)?(?:抱歉|对不起){_}{{0,12}}(?:无法|不能|没法){_}{{0,20}}"
            r"(?:帮助|帮忙|回答|提供|协助|满足|完成|处理|讨论)"
        ),
        rf"作为(?:一个|一名|一款)?(?:ai|人工智能|(?:大型?)?语言模型){_}{{0,12}}我",
    ),
    "ja": (
        (
            rf"(?:申し訳(?:ありません|ございません|ない)|すみません|ごめんなさい){_}{{0,40}}"
            r"(?:できません|できかねます|いたしかねます)"
        ),
        rf"(?:私は)?(?:ai|言語モデル)(?:アシスタント|言語モデル)?(?:として|なので){_}{{0,40}}ません",
    ),
    "ko": (
        rf"(?:죄송하지만|죄송합니다|미안하지만){_}{{0,40}}(?:수 없습니다|수 없어요|어렵습니다)",
        rf"(?:저는 )?(?:ai|인공지능|언어 모델)(?: 언어 모델)?(?:로서|이기 때문에){_}{{0,40}}니다",
    ),
}
