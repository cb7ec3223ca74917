"""Rule-based labels of a chest X-ray report: the 14 CheXpert observations, without weights.

    >>> labels = label("Small left effusion. Heart size is normal. No pneumothorax.")
    >>> {name: value for name, value in labels.items() if value is not None}
    {'Cardiomegaly': 0, 'Pneumothorax': 0, 'Pleural Effusion': 1}

One pass over each sentence finds mentions and cues. A cue negates, casts doubt on or drops the mentions after it up to
the next stop word, or those before it (the idea of NegEx); over a report positive outweighs uncertain, which
outweighs negative. Labels follow the conventions of the CheXpert labeler (Irvin et al., AAAI 2019, arXiv
1901.07031, github.com/stanfordmlgroup/chexpert-labeler):

- What counts is the word, not what follows from it: consolidation, edema or pneumonia alone is no Lung Opacity,
  "nodular opacity" is Lung Lesion and Lung Opacity, and "lungs are clear" mentions nothing.
- No Finding is 1 when no observation but Support Devices is positive or uncertain, and no other abnormality
  (`OTHER`: emphysema, granuloma, scoliosis …) is either. So it is 1 for a blank text, and never 0.
- "Likely", "consistent with" and a plain "X or Y" are positive; "may represent", "concerning for", "not excluded",
  "should be considered" and "versus" uncertain; what is gone ("removed", "resolved") is negative.
  Vascular congestion is uncertain Edema. A heart or mediastinum that is stable, and no more is said, is uncertain;
  one at the upper limits of normal is normal.

They differ on purpose where its patterns read against the sense. "Probable X" is positive, like "likely X", and so
is "X and/or Y" (uncertain there); "no new X" is negative (uncertain there); "history of X" and "evaluate for X" are
no mention, nor is what a view cannot show ("a small pneumothorax may be missed": uncertain there), nor a heart of which
nothing is said (positive there); fibrosis is Pleural Other only if it is pleural; a calcified nodule is a Lung Lesion;
heart failure adds no uncertain Cardiomegaly; Support Devices also take the short names of tubes, lines and pumps,
stents, shunts and sternal wires, but like there no clips; and an enlarged or normal cardiomediastinal silhouette is the
heart's as well.

Text is English, findings and impression only (an indication names what is looked for, not what is seen; in a whole
report, what stands under such a header is skipped). Words that a corpus has masked (`XXXX`) are ordinary unknown words.

One file that needs only the standard library: under another name, an older version's still gives its labels.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import accumulate

VERSION = "4"
"""Changes whenever a rule changes; part of every score's signature."""

OBSERVATIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)
"""The order of CheXbert's heads."""

POSITIVE, NEGATIVE, UNCERTAIN = 1, 0, -1
_DROPPED = None  # inside "evaluate for …", "history of …": says nothing about this study

# The tables hold regular expressions over lower-case text with single blanks and no hyphens. Each is matched from
# the start of a word to the end of one; where several match, the first table wins, and in a table the first phrase.

_SEEN = (
    r"(?:seen|identified|present|visuali[sz]ed|appreciated|demonstrated|evident|noted|detected|observed|apparent"
    r"|visible|found|recogni[sz]ed)"
)
_WELL_SEEN = rf"(?:{_SEEN}|(?:evaluat|assess|imag)ed(?! for))"
_TAKEN = (
    r"(?:removed(?! and (?:replaced|exchanged))|retrieved|discontinued|d ?c'?d|explanted|extracted|taken out"
    r"|decannulated)"
)
# A line that is pulled back is still there.
_NOT_BACK = r"(?!.{0,60}\b(?:tip|now|\d*[cm]m|back|by|to the|into|slightly|partially|terminat\w*|ends?)\b)"
_GONE = (
    rf"(?:resolved|cleared|disappeared|vanished|subsided|abated|dissipated|gone|re ?absorbed|resorbed|{_TAKEN}"
    rf"|(?:withdrawn|pulled(?: out)?){_NOT_BACK}|(?:excluded|ruled out)(?! (?:from|by th)))"
)
_HOW = (
    r"(?: (?:now|since|also|both|all|again|been|x{4}"
    r"|(?!part|near|large|most|incomplete|substant|signific|consider|hard|scarce|bare)\w+ly))"
)
# "not", and what may stand between it and the exclusion that it denies.
_NOT = (
    r"(?:can ?not|not|never|nothing|none|by no means|neither|hardly|scarcely|barely|unable|inability|fail\w*"
    r"|difficult\w*|hard|challenging|impossible|in(?:sufficient|adequate|complete)\w*|preclud\w*|limit\w*"
    r"|no (?:evidence|way|means)|(?:no|without)(?= (?:\w+ ){0,2}exclusion))"
    r"(?:,? (?:be|been|being|to|of|in|for|at|as|an?|the|any|this|these|that|here|above|us|our|yet|still|even|quite"
    r"|well|also|however|though|either|nor|or|and|able|ability|possible|enough|sufficient|adequate|sensitive|specific|allow\w*|help|used|time"
    r"|point|safe|certain|reliable|complete|confident|confirm\w*|prove[dn]?|diagnosed|established|with|certainty"
    r"|confidence|definite|definitive|\d+%?|x{4}|\w+ly),?){0,6}"
)
_EXCLUDE = (
    r"(?:exclu(?:d\w+|sion)|rul(?:ed?|es|ing) (?:in or )?out|r o(?:'d)?|discount\w*|dismiss\w*"
    r"|eliminat\w*)"
    r"(?: (?:with|for) (?:\w+ )?(?:certainty|confidence|sure|certain)| (?!cardiomegaly)\w+ly| altogether)?+"
)
_DETECT = r"(?:detect|identify|see|discern|appreciate|evaluate|assess|visuali[sz]e|diagnose|recogni[sz]e|perceive)"
_HIDDEN = (
    r"(?:obscured|missed|hidden|masked|overlooked|concealed|occult|in ?apparent|inconspicuous|invisible"
    r"|un ?(?:detect|recogni|notic|seen|appreci)\w*)"
)

# Phrases that hold a mention or a cue and are neither.
NEUTRAL = (
    r"(?:pericardial|knee|joint|hip|elbow) effusions?|(?:tissue|subcutaneous|peripheral|leg) edema|mass effect"
    r"|vertebra\w*(?: body)? collapse|no (?:prior|previous|comparison)\w*|not only"
    r"|normal (?:interstitial|lung) markings|(?:interstitial|lung) markings (?:are|appear|remain) (?:normal|within)"
    # a "with" that does not end the reach of a cue
    r"|(?:consistent|compatible|keeping|associat\w+|combined|compared?|comparison) with|c w"
    # not gone yet
    r"|(?:(?:ha[sd]|have|is|are) )?(?:nearly|almost|partial(?:ly)?|partly|largely|mostly|substantially|significantly"
    r"|incompletely|considerably|not|never)(?: (?:yet|been|all|interval|\w+ly)){0,2}"
    r" (?:resolved|cleared|disappeared|gone|removed|discontinued)"
    r"|(?:near(?:ly)?|almost|partial|incomplete|some|without|no|lack of)"
    r"(?: (?:interval|complete|total|significant)){0,2} (?:resolution|clearing)(?: of)?"
    rf"|(?:can|could|may|might|will|would|should|must|to) be (?:\w+ly )?(?:{_TAKEN}|withdrawn|pulled)|being {_TAKEN}"
    r"|(?:recommend\w*|consider\w*|suggest\w*|advis\w*|prior to|before|await\w*|pending|planned|for|requires?|needs?)"
    r" (?:\w+ )?(?:removal|withdrawal)(?: of)?"
    # not seen on another view or day
    rf"|(?:not(?<=, not)|which (?:is|are) not)(?: \w+)? {_SEEN} (?:on|in) (?:the )?(?:lateral|frontal|pa|ap|other)"
    rf"|(?:not|never)(?: \w+)? {_SEEN} (?:(?:on|in|at) (?:(?:the|an?|any|x{{4}}) )?)?(?:most )?(?:recent )?"
    rf"(?:prior|previous|previously|earlier|before|old)|(?:not|never) (?:been )?(?:previously|formerly|before) {_SEEN}"
)

# Words that state the abnormality by themselves.
FINDINGS = {
    "Pleural Other": r"pleur\w+ (?:parenchymal |based |and |or )?(?:thicken\w+|scar\w*|plaques?|fibrosis|calcifi\w+)"
    r"|pleuro ?parenchymal (?:\w+ )?(?:scar\w*|thicken\w+)|fibrothorax|apical cap\w*|fissural thicken\w+",
    "Lung Lesion": r"mass(?:es|like)?|nodules?|nodular(?= (?:\w+ )?(?:opaci|densit))|tumou?rs?|neoplas\w+|carcinomas?"
    r"|malignan\w+|(?:lung|bronchogenic) cancer|(?:lung|pulmonary|parenchymal|cavit\w+) lesions?",
    "Pneumonia": r"(?:broncho)?pneumonias?|pna|pneumonic|infecti\w+",
    "Pneumothorax": r"(?:(?:hydro|hemo) ?)?(?:pneumothora\w+|ptx)",
    "Pleural Effusion": r"effusions?|pleural (?:\w+ )?fluid|(?:hydro|ha?emo)thorax",
    "Edema": r"edema\w*|oedema\w*|(?:heart|congestive) failure|chf|(?:volume|fluid) overload",
    "Consolidation": r"consolidat\w+",
    "Atelectasis": r"atelecta\w+|collapsed?",
    "Cardiomegaly": r"cardiomegaly|cardiac enlargement",
    "Enlarged Cardiomediastinum": r"mediastinal (?:widening|enlargement)",
    "Fracture": r"fractur\w+(?! [\w ]{0,40}\b(?:wires?|leads?|catheters?|hardware|screws?)\b)",
    "Lung Opacity": r"opaci\w+|opaque|haziness|air ?space (?:diseases?|process\w*)|infiltrat\w+|scar(?:s|red|ring)?"
    r"|reticul\w+|(?:increased|hazy|patchy|streaky) densit\w+|peribronchial (?:thickening|cuffing)"
    r"|interstitial (?:lung )?(?:\w+ )?(?:markings?|patterns?|prominence|thickening|diseases?|changes?)",
    "Support Devices": r"pace ?makers?|pacers?|ppms?|leads?(?! (?:to|fracture))|electrodes?|icds?|aicds?|crt"
    r"|defibrillators?|stimulators?|generators?|loop recorders?|ilrs?|linq|micra|(?:cardiac|event) monitors?"
    r"|(?:pacing|defibrillat\w+) pads?"
    # lines
    r"|(?:central|venous|subclavian|sc|lsc|rsc|jugular|arterial|ij|rij|lij|femoral|access|dialysis|hd|pa|support|monitoring"
    r"|infusion|intravenous|iv|indwelling|art|lumen|tunneled|umbilical) lines?|lines and tubes"
    r"|(?:all|other|multiple) lines(?! of)|a lines?(?! (?:of|along|that|parallel|between|across|which|represent\w*)\b)"
    r"|picc?s?|(?:porta?|perma?)?catheters?|(?:port(?: ?a)?|perm(?: ?a)?|va\w) ?cath|cv[lcp]s?|pcv[lcp]s?|tlcs?"
    r"|triple lumen|ij|rij|lij|u[va]c"
    r"|(?:(?:medi|media|infusa|chemo|power) ?)?ports?|swan(?: ganz)?|sgc|introducers?|sheaths?(?! tumou?r)|cordis"
    r"|hickman|broviac|groshong|quinton"
    # tubes and drains
    r"|tubes?|etts?|n[gjd]ts?|o[gjd]ts?|dhts?|d[ou][bp]+ ?ho+f+"
    r"|(?:et|ng|nj|og|oj)(?= (?:and|is|in|are|tip|ends?|has|was|terminat\w+)\b)"
    r"|corpak|entriflex|keofeed|trachs?|tracheostom\w+|tracheotom\w+|shiley|cannula[se]?|pegs?|blakemore"
    r"|(?:temperature|esophageal) probes?"
    r"|drains?|pigtails?|pleur ?x|shunts?"
    # the heart
    r"|ecmo|iabps?|(?:balloon|infusion|insulin|pain) pumps?|intra ?aortic balloons?|counterpulsation|vads?|lvads?"
    r"|rvads?|bivads?|ventricular assist|impella|heart ?(?:mate|ware)|valves?(?! calcif)|tavr|tavi|mitra ?clips?"
    r"|annuloplasty|watchman|amplatzer|occluders?|avrs?|mvrs?|tvrs?"
    # the rest
    r"|(?:sternal|sternotomy|pac(?:ing|er|emaker)|epicardial|temp(?:orary)?|guide|cerclage) ?wires?"
    r"|(?:ivc|caval|cava) filters?|stents?|hardware|devices?|screws?"
    r"|plates?(?! like)(?<!end plate)(?<!end plates)|prosthe\w+|arthroplast\w+",
}
# Uncertain even where no doubt is expressed.
HINTS = {"Edema": r"(?:vascular|venous|pulmonary) congestion|vascular (?:prominence|indistinctness)"}
# Abnormalities that are none of the 13 but deny No Finding.
OTHER = (
    r"emphysem\w+|copd|chronic obstructive|hyper ?(?:inflat|expan|aerat)\w+|asthma\w*|bronchi(?:tis|ectasis|olitis)"
    r"|bull(?:a|ae|ous)|(?:granuloma|tubercul)\w*(?: infections?)?|calcifi\w+|metasta\w+|(?:lymph)?adenopathy|fibro\w+"
    r"|volume loss|elevat\w+|eventration|blunt\w+|hernias?|pneumo(?:mediastinum|peritoneum|nitis)|aspiration"
    r"|contusions?|ha?ematomas?|ha?emorrhag\w+|lesions?|atheroscler\w+|tortuo\w+|ectas\w+|aneurysm\w*|hypertension"
    r"|(?:dextro|levo|roto)?scolio\w+|kypho\w+|degenerat\w+|spondyl\w+|osteo\w+|arthr\w+|deformit\w+|wedging|compression|thicken\w+"
)

# Organs: a mention only together with a word about their size.
STRUCTURES = {
    "cardiomediastinum": r"cardio ?(?:pericardial )?mediastin\w+(?: silhouettes?| contours?)?",
    "heart": r"heart(?! (?:failure|rate|valve|surgery|borders?|disease))(?: size)?|cardiac(?= and (?:\w+ )?mediastin)"
    r"|(?:cardiac|cardio ?pericardial|pericardial) (?:silhouettes?|size|shadow|contours?)(?: size)?",
    "mediastinum": r"mediastinum|mediastinal(?= and cardiac)"
    r"|mediastinal (?:silhouettes?|contours?|structures?|size|width|shadow|borders?)",
}
_MEASURED_BY = {
    "cardiomediastinum": ("Enlarged Cardiomediastinum", "Cardiomegaly"),
    "heart": ("Cardiomegaly",),
    "mediastinum": ("Enlarged Cardiomediastinum",),
}
SIZES = {
    "borderline": r"borderline(?! enlarg)"
    r"|(?:(?:upper|top) )?(?:limits? )?(?:of )?normal (?:to|or) (?:(?:mildly|slightly) )?enlarged",
    "normal": r"(?:upper|top)(?: limits?| range)?(?: of)?(?: the)? normal|normal\w*|unremarkable"
    r"|not (?:\w+ ){0,2}(?:enlarged|widened|prominent|dilated)",
    "enlarged": r"(?:borderline )?enlarg(?:ed|ement|ing)|large|wid(?:ened|ening)|promine\w+",
    # a table of its own also so that the "no" of "no change" negates nothing
    "stable": r"stable|unchanged|similar"
    r"|(?:no|not|without)(?: (?:significant\w*|relevant|interval|definite|x{4})){0,2} (?:change|(?:in|de)crease)[ds]?",
}

# Cues: "…_before" precedes the mentions it is about, "…_after" follows them, and "…_either" follows them where its
# statement ends: "pneumonia is hard to exclude", "hard to exclude pneumonia".
_SETTING = r"in the \w+ clinical (?:setting|context)"
CUES = {
    "uncertain_after": r"(?:should|must|needs?|remains?|has|have|ought|yet)(?: to)? be (?:\w+ly )?"
    r"(?:excluded|ruled out)"
    r"|exclusion(?= (?:is|are|was|remains|can|cannot|could|may)\b|$)|in the differential(?= ?,|$)"
    r"|(?:may|might|could)(?: also)? (?:be present|have (?:this|a similar) appearance)|[?](?! \w)"
    r"|(?:is|are|also|remains?) (?:(?!not\b)\w+ )?(?:possible(?! to)|suspected|presumed|question(?:ed|able))"
    r"|(?:is|remains) an? (?:\w+ )?(?:possibility|consideration|concern)"
    rf"|(?:possible|suspected|questionable|less likely|if any|if present)(?= ?,|$)|{_SETTING}(?=$)"
    r"|can ?not be (?:\w+ly )?(?:confirmed|proven|verified|ascertained|assured|guaranteed|established)"
    rf"|(?:not|can ?not be) (?:well|clearly|fully|adequately|optimally) {_WELL_SEEN}"
    rf"|(?:is|are) (?:poorly|incompletely|suboptimally) {_WELL_SEEN}",
    # what a view cannot show
    "dropped_after": rf"(?:may|might|can|could|would|will)(?: \w+)? be (?:\w+ly )?(?:{_HIDDEN}|(?:below|beyond)(?= ))"
    rf"|(?:may|might|will|would)(?: \w+)? not(?: always| necessarily| be| expected| to){{0,4}}(?: \w+ly)? {_SEEN}"
    rf"|(?:may|might|can|could|would|will) (?:\w+ly )?(?:escape|elude|evade|go) (?:detection|{_HIDDEN})"
    rf"|(?:often|frequently|commonly|easily|usually|radiographically) (?:{_HIDDEN}|not {_SEEN})"
    r"|(?:not|can ?not be) (?:\w+ly )?(?:evaluated|assessed|determined)(?! for)"
    r"|(?:below|beyond) the (?:resolution|limit)"
    r"|(?<!\band )(?:detection|identification|evaluation|assessment)(?= (?:is|are|was|may|remains?)\b)",
    "negative_after": rf"(?:not|no longer|never|can ?not)(?: be)?(?: \w+)? {_SEEN}|absent|none(?! of)|no(?=$)"
    r"|can be (?:\w+ly )?(?:excluded|ruled out)|(?:is|are|been|now) out(?= ?,|$)"
    rf"|(?:ha[sd]|have|is|are|was|were|been|appears?){_HOW}{{0,3}} {_GONE}|(?:now|since) {_GONE}"
    r"|with (?:interval |complete )*resolution(?! of)|(?:removal|resolution)(?! of)(?= ?,|$| since| in| with)",
    "uncertain_either": rf"{_NOT} {_EXCLUDE}|(?:can ?not|not) (?:\w+ ){{1,3}}(?:excluded|ruled out)"
    r"|(?:should|could|may|might|can|must)(?: also)? be considered",
    "dropped_either": rf"(?:difficult|hard|impossible|challenging|unable|inability) to (?:\w+ly )?{_DETECT}",
    "negative_either": rf"(?:(?:completely|entirely|fully|interval) )?{_GONE}|no longer(?: ha[sd]| have)?"
    r"|unlikely(?: to (?:be present|be|represent|reflect))?",
    # what is looked for
    "dropped_before": r"(?:evaluat\w+|assess\w*)(?: (?:of|\w+ of)|(?: \w+){0,3} for)|eval(?: for)?|identification of"
    r"|(?:look\w*|search\w*|screen\w*|check\w*|monitor\w*)(?: \w+)? for|(?:history|h o|risk) (?:of|for)|^is there"
    r"|(?:to )?(?:rule out|r o|exclude)|(?:exclusion of|excluding|ruling out)"
    r"(?![^,]{0,80} (?:not|cannot|limited|difficult|impossible|incomplete|hard|requires?|needs?)\b)"
    # what a view cannot show
    rf"|(?:in|un)?sensiti\w+|detect(?:ion|ing|ability)|ability to (?:\w+ly )?(?:{_DETECT}|demonstrate|show)"
    r"|underestimat\w+"
    r"|(?:to|may|might|could|can|would|will|better|reliably) (?:\w+ly )?detect"
    r"|(?:may|might|could|can|would|will) better (?:demonstrate|show|reveal|depict)"
    r"|(?:limited|suboptimal|inadequate|unreliable|tailored|optimized|designed|ideal|optimal|suit\w+|non ?diagnostic)"
    r" for|(?:may|might|can|could|would|will|potentially) (?:\w+ly )?"
    r"(?:obscure|mask|hide|conceal|miss|overlook|limit|preclude)"
    # what is to be done, and when
    r"|for (?:suspected|possible|suspicion of|concern for)(?= [^,]+,)"
    r"|(?:if|unless|should there be)(?: there (?:is|are|remains?|were|persists?))?"
    r"|(?:^|(?<=, ))should(?= (?:\w+ ){1,8}be\b)"
    r"|(?:when|where|whenever|in case|in the event|in cases)(?: \w+){0,8}"
    r" (?:concern\w*|suspicion|suspect\w*|question\w*)(?: (?:for|of|about))?"
    r"|(?:until|till|to|pending|(?:to )?(?:ensure|document|confirm|verify|establish|assure))(?: \w+){0,2}"
    r" (?:resolution|clearing|clearance|resolved|cleared)(?: of)?",
    "uncertain_before": r"(?:can ?not|not|to|hard|difficult) (?:\w+ly )?rule(?= (?:\w+ ){1,6}out\b)"
    r"|(?:exclusion of|excluding|ruling out)"
    r"|may(?:be)?|might|could|possibl[ey]|possibility|conceivabl[ey]|presum\w+|question\w*|equivocal|suspect\w*"
    r"|suspici(?:ous|on) (?:for|of)|concern(?:s|ing)? (?:for|of)|worrisome for|suggest\w*|favor\w*|less likely"
    rf"|consider(?!ing)\w*|non ?exclu\w+|differential|correlat\w+(?: \w+){{0,2}} (?:for|as to)|{_SETTING}|[?](?= \w)"
    r"|(?:hard|impossible) to say(?: (?:if|whether)(?: there (?:is|are))?)?",
    "negative_before": r"no|not|without|w o|negative for|nor|neither|rather than|excludes|rules out"
    r"|(?:free|clear|absence|lack|disappearance|resolution|clearing|clearance|removal|drainage|explantation|extraction"
    rf"|discontinuation|retrieval) (?:of|from)|withdrawal of{_NOT_BACK}",
    "versus": r"versus",
    # takes up what was said before
    "back": r"(?:which|it|this(?: finding| possibility)?|these|that|one|they)"
    r"(?= (?:can|could|is|are|has|have|was|were|may|might|cannot|would|remains?)\b)",
    "stop": r"but|however|although|though|while|whereas|except|with|there (?:is|are|has|have)|there(?= may)"
    r"|and (?:the|there|a|an)|and(?= (?:unchanged|stable|persistent|residual|remaining)\b)|which"
    r"|is (?:again )?(?:seen|noted|present)"
    r"|(?:after|following|since|status post|s p)(?= (?:\w+ ){0,5}removal)"
    r"|so(?<=, so)|thus(?<=, thus)|hence(?<=, hence)|therefore(?<=, therefore)"
    r"|(?:bearing|keeping) in mind|(?:recogni[sz]|acknowledg|realiz)ing|mindful"
    # "no pneumothorax, small effusion": these words assert what they describe
    r"|(?<=, )(?:small|tiny|trace|mild|minimal|slight|persistent)",
}
_FIXED = {"normal": NEGATIVE, "borderline": UNCERTAIN, "stable": UNCERTAIN}  # whatever the cues say
_BEFORE = {"negative_before": NEGATIVE, "dropped_before": _DROPPED}
_EITHER = ("uncertain_either", "dropped_either", "negative_either")
_AFTER = {"uncertain_after": UNCERTAIN, "dropped_after": _DROPPED, "negative_after": NEGATIVE}

_VERSUS = re.compile(r"\bvs\b\.?")
_DOTTED = re.compile(r"(?<=\b[a-z])\.(?=[a-z]\b)")  # "E.T.T."
_PARENTHESIS = re.compile(r" \( ?")  # but not that of "effusion(s)"
_BLANKS = str.maketrans(dict.fromkeys("-_/\\)", " ") | {"`": "'", "?": " ? "})
# What word processors make of apostrophes, hyphens and dashes; soft hyphens and zero-width characters are dropped.
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("‘’‛′´ʼʹ＇", "'")
    | dict.fromkeys("‐‑‒–—―−", "-")
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff")
)
# What was known or asked before the images were read, up to a blank line or the next header.
_ASKED = re.compile(
    r"\b(?:(?:clinical )?(?:indications?|history)|clinical (?:information|data|question)|reason for (?:the )?"
    r"(?:exam\w*|study))\s*:.*?(?=\n\s*\n|\b[a-z][a-z ,()/-]{3,40}:)",
    re.DOTALL,
)
# "can't" and its like, with and without the apostrophe
_CONTRACTED = re.compile(r"\b(can|could|is|are|was|were|ha[sd]|have|do|does|did|would|should)(?:(?<=can)|n)[' ]?t\b")
# "neither effusion nor edema can be excluded"
_NEITHER = re.compile(
    r"\bneither ([^,]{1,60}?) nor ([^,]{1,60}?) (can|could|may|is|are|was|were|has|have)"
    r"(?= (?:\w+ ){0,3}(?:excluded|ruled out)\b)"
)
_SENTENCE_END = re.compile(r"(?<=[.;!])\s+|(?<=\w\?)\s+|(?<=[.;])(?=[a-z]{2})|\n\s*\n")
# What can come after the statement of an "…_either".
_END = re.compile(
    r" ?(?:[,?]|$)| (?:on|in|at|by|since|from|with|without|within|and|or|but|compared|now|today|when|though|although"
    r"|however|following|after|as|due|given|because|to|for|until|relative|this|that|during|via|either|here|yet|alone|is"
    r"|are|was|were|has|have|may|remains?|based|owing|secondary|if|unless|especially|portable|pa|ap|lateral"
    r"|(?!cardiomegaly|early)\w+ly)\b"
)
# Between a size and the organ it describes ("enlargement of the heart"), and what parts an organ from its predicate.
_ATTRIBUTE = re.compile(
    r" (?:(?:in|of|the|overall|upper|superior|size|size and|x{4}|and stable|stable|and unchanged) )*"
)
_PARTED = (
    re.compile(r"\b(?:with|without|by|for|due|obscur\w*)\b"),
    re.compile(r"\b(?:is|are|appears?|remains?)\b[^,]*,"),
)
_AND = re.compile(r" and (?:the )?")
_START = re.compile(r"\b[a-z]|[,?]")
# "effusion, edema and pneumothorax are absent"
_LIST = re.compile(r" or |(?:(?! (?:is|are|was|were|has|have|no|with|remains?) )[^,])*? and ")
# "there is an effusion and pneumothorax has resolved", "the effusion is smaller and pneumothorax has resolved"
_THERE = re.compile(r"\bthere (?:is|are)\b[^,]*$")
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|remains?|persists?)\b")
_EXTENT = re.compile(r"\b(?:extent|size|severity|degree|amount|margins?|borders?) of\b")
_TIP = re.compile(r"\b(?:tip|end)\b")
# "no edema, left tube is in place" asserts the tube, "no edema, mass or effusion is seen" nothing
_ASSERTION = re.compile(
    rf"(?:(?!\b(?:or|nor)\b)[^,])*\b(?:is|are|has|have|remains?|persists?)\b(?! (?:been )?(?:\w+ )?{_SEEN})"
)
_OR_AHEAD = re.compile(r"\b(?:or|versus)\b")


class _Said:
    """A finding, or a word of SIZES."""

    def __init__(self, token: re.Match[str], kind: str, value: int | None) -> None:
        self.token = token
        self.kind = kind.removeprefix("hint_")
        self.value = _FIXED.get(kind, UNCERTAIN if kind != self.kind and value == POSITIVE else value)

    def change(self, value: int | None) -> None:
        """What a cue after it says; what is denied stays so where a view cannot show it."""
        denied_for_good = value is _DROPPED and self.value == NEGATIVE
        if self.value is not _DROPPED and self.kind not in _FIXED and not denied_for_good:
            self.value = value


def label(text: str) -> dict[str, int | None]:
    """Label the findings and impression of one report.

    Returns:
        Every one of `OBSERVATIONS` -> 1 positive, 0 negative, -1 uncertain, None not mentioned (No Finding: 1 or
        None). Case does not matter, nor does the amount of white space, but a blank line ends a sentence.
    """
    seen: dict[str, set[int]] = defaultdict(set)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_TYPOGRAPHY))
    text = text.lower()
    text = _DOTTED.sub("", text)
    if ":" in text:
        text = _ASKED.sub("\n\n", text)
    for sentence in _SENTENCE_END.split(_VERSUS.sub("versus", text)):
        for observation, value in _read(sentence):
            seen[observation].add(value)
    strongest = (POSITIVE, UNCERTAIN, NEGATIVE)
    labels = {name: next((value for value in strongest if value in seen[name]), None) for name in OBSERVATIONS}
    abnormal = any(values - {NEGATIVE} for name, values in seen.items() if name != "Support Devices")
    labels["No Finding"] = None if abnormal else POSITIVE
    return labels


@cache
def _tokens() -> dict[str, re.Pattern[str]]:
    """First letter -> all phrases that may begin with it as one alternation, each table a named group ("_" for " ")."""
    first = (*_AFTER, *_EITHER)
    tables = {"comma": ",", "neutral": NEUTRAL, **{name: CUES[name] for name in first}, **SIZES}
    tables |= {name: phrases for name, phrases in CUES.items() if name not in first}
    tables |= {f"hint {name}": phrases for name, phrases in HINTS.items()}
    tables |= FINDINGS | STRUCTURES | {"other": OTHER}
    groups: dict[str, dict[str, list[str]]] = {letter: defaultdict(list) for letter in "abcdefghijklmnopqrstuvwxyz,?"}
    for name, table in tables.items():
        for phrase in _split(table):
            for letter in set(_initials(phrase) or groups):
                groups[letter][name.replace(" ", "_")].append(phrase)
    return {
        letter: re.compile(
            "(?:" + "|".join(f"(?P<{name}>{'|'.join(group)})" for name, group in named.items()) + r")(?!\w)"
        )
        for letter, named in groups.items()
    }


def _split(phrases: str) -> list[str]:
    """The alternatives of a regular expression."""
    parts, depth = [""], 0
    for char in phrases:
        depth += (char == "(") - (char == ")")
        if char == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _initials(phrase: str) -> str:
    """The characters that a phrase can begin with; "" where that cannot be told."""
    if not phrase.startswith("(?:"):
        return phrase[0] if re.match(r"[a-z,](?![?*])", phrase) else ""
    end = list(accumulate((char == "(") - (char == ")") for char in phrase)).index(0)
    heads, rest = _split(phrase[3:end]), phrase[end + 1 :]
    initials = [_initials(head) for head in (*heads, rest[1:])[: len(heads) + rest.startswith("?")]]
    return "".join(initials) if all(initials) else ""


def _scan(sentence: str) -> Iterator[re.Match[str]]:
    """The phrases of a sentence. (One alternation for all letters takes two to four times as long.)"""
    patterns, end = _tokens(), 0
    while start := _START.search(sentence, end):
        token = patterns[start[0]].match(sentence, start.start())
        end = token.end() if token else start.end()
        if token:
            yield token


@lru_cache(maxsize=1 << 16)  # reports are made of the same sentences
def _read(sentence: str) -> tuple[tuple[str, int], ...]:
    """(observation or "other", value) of every mention in a lower-case sentence."""
    sentence = " ".join(sentence.translate(_BLANKS).split()).rstrip(" .;!")
    if "(" in sentence:
        sentence = _PARENTHESIS.sub(", ", sentence).replace("(", " ")
    sentence = _CONTRACTED.sub(r"\1 not", sentence)
    if "neither" in sentence:
        sentence = _NEITHER.sub(r"\1 and \2 \3 not", sentence)
    said: list[_Said] = []
    organs: list[re.Match[str]] = []
    state: int | None = POSITIVE
    # Indices in `said`: of the first word of this clause, of the first that a cue reaches back to, and of the last
    # phrase before this one.
    clause = reach = earlier = 0
    previous, end = "", 0
    for token in _scan(sentence):
        kind = token.lastgroup or ""
        if kind in _EITHER:
            kind = kind.replace("either", "after" if _END.match(sentence, token.end()) else "before")
        if kind in ("comma", "stop", "back") and reach < len(said):
            earlier = reach
        if kind == "comma":
            # "effusion, and edema are absent" is one list, "opacity, effusion is absent" is not
            reach = clause if _LIST.match(sentence, token.end()) else len(said)
            if state != POSITIVE and _ends_at_comma(sentence, token.start(), state):
                state = POSITIVE
        elif kind in ("stop", "back"):
            clause = len(said)
            reach = earlier if kind == "back" else clause  # "effusion, which has resolved"
            if kind == "stop" or token[0] == "which":
                state = POSITIVE
        elif kind == "uncertain_before":
            # "no opacity to suggest edema" stays negative, "no edema, possible effusion" does not
            denied = state == NEGATIVE and token.lastgroup == kind and previous not in ("comma", "back")
            if state is not _DROPPED and not denied:
                state = UNCERTAIN
        elif kind == "versus":
            if state == POSITIVE:
                state = UNCERTAIN
                for word in said[-1:]:
                    word.change(UNCERTAIN)
        elif kind in _BEFORE:
            state = _BEFORE[kind]
        elif kind in _AFTER:
            apposed = previous in ("comma", "stop") and not sentence[end : token.start()].strip()
            earlier = earlier if apposed and reach == len(said) else reach
            for word in _subjects(sentence, said[earlier:], token.start()):
                word.change(_AFTER[kind])
            reach = len(said)
        elif kind in STRUCTURES:
            organs.append(token)
        elif kind != "neutral":
            if kind == "stable" and previous == "comma":
                state = POSITIVE
            reach = max(reach, clause)
            said.append(_Said(token, kind, state))
        previous, end = kind, token.end()
    found = [(word.kind.replace("_", " "), word.value) for word in said if word.kind not in SIZES]
    sizes = [word for word in said if word.kind in SIZES]
    found += _measure(sentence, organs, sizes) if sizes else []
    return tuple((name, value) for name, value in found if value is not None)


def _subjects(sentence: str, words: list[_Said], cue: int) -> list[_Said]:
    """Of the words that a cue reaches back to, those that it is about."""
    if not words:
        return []
    first, last = words[0].token.start(), words[-1].token.start()
    if _EXTENT.search(sentence, max(first - 40, 0), first):  # "the extent of the effusion is hard to see"
        return []
    verb = _THERE.search(sentence, max(first - 40, 0), first) or _VERB.search(sentence, first, last)
    if verb and (subject := sentence.rfind(" and ", verb.end(), last)) > first:
        words = [word for word in words if word.token.start() > subject]
    if _TIP.search(sentence, max(words[0].token.start() - 40, 0), cue):  # a tube whose tip is not seen
        words = [word for word in words if word.kind != "Support_Devices"]
    return words


def _ends_at_comma(sentence: str, comma: int, state: int | None) -> bool:
    """Whether what a cue says stops at this comma; it goes on through a list."""
    if state == NEGATIVE:
        return bool(_ASSERTION.match(sentence, comma + 1))
    before = sentence[:comma]
    return not (
        before.endswith(("setting", "context")) or "differential" in before or _OR_AHEAD.search(sentence, comma)
    )


def _measure(sentence: str, organs: list[re.Match[str]], sizes: list[_Said]) -> list[tuple[str, int | None]]:
    """What the sentence says about the size of the heart and the mediastinum."""
    found: list[tuple[str, int | None]] = []
    shared: list[_Said] = []  # "normal heart size and mediastinal contours": said once, for both
    shared_end = 0
    for organ in organs:
        near = [size for size in sizes if _ATTRIBUTE.fullmatch(sentence, size.token.end(), organ.start())]
        if not near and shared and _AND.fullmatch(sentence, shared_end, organ.start()):
            near = shared
        shared, shared_end = near, organ.end()
        if not near:  # a predicate: "the heart is enlarged"
            parted = [match.end() for part in _PARTED if (match := part.search(sentence, organ.end()))]
            end = min(parted, default=len(sentence))
            after = [size for size in sizes if organ.end() <= size.token.start() < end]
            near = [size for size in after if "," not in sentence[after[0].token.end() : size.token.start()]]
        if not near:
            continue
        # "stable and normal" is normal
        size = next((size for size in near if size.kind != "stable"), near[0])
        names = _MEASURED_BY[organ.lastgroup or ""]
        found += [(name, size.value) for name in (names[:1] if size.kind == "stable" else names)]
    return found
