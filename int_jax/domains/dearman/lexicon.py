"""Words and patterns by which the rater knows what an utterance does.

Patterns are searched in an utterance as `rater.normal` spells it: lower case, signs apart, one blank between all.
"""

import re


def _any(words: str) -> str:
    """An alternative of phrases that stand apart by line breaks or commas, the longest first."""
    found = {" ".join(one.split()) for one in re.split(r"[,\n]", words) if one.strip()}
    return "(?:" + "|".join(sorted(found, key=lambda one: (-len(one), one))) + ")"


def _found(pattern: str) -> re.Pattern:
    return re.compile(rf"(?<![\w'])(?:{pattern})(?![\w'])")


NUMBER = (
    r"(?:\d+(?:st|nd|rd|th)?|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty"
    r"|dozen)"
)
UNIT = (
    r"(?:minute|hour|day|night|week|weekend|month|year|time|evening|morning|afternoon|lunche?"
    r"|dinner|meeting|shift)s?"
)
DAY = r"(?:mon|tues|wednes|thurs|fri|satur|sun)days?(?: 's)?"
MONTH = r"(?:january|february|march|april|may|june|july|august|september|october|november|december)"
# What places a fact in time, or counts it.
ANCHOR = _found(
    rf"once|twice|yesterday|tonight|today|{NUMBER}|one {UNIT}|(?:last|this|every|each|past) {UNIT}"
    rf"|{DAY}|{DAY}'s"
    rf"|(?:in|since|of|until|from|during) (?:\d+ )?{MONTH}|in a row|an? (?:hour|week|month|third"
    r"|half) (?:ago|late|before)"
)
FACT = _found(  # a verb of what was: the past, or the perfect
    r"\w{2,}ed|i've|you've|we've|they've|(?:has|have|it's|he's|she's) (?:\w+ )?(?:been|\w+ed|come|gone"
    r"|done|stood|had|run)|"
    + _any(
        """was,were,had,did,came,took,paid,told,heard,sent,went,made,gave,got,saw,stood,lay,left,broke,spoke,ran,rang,
        wrote,said,kept,drove,lent,slept,woke,rose,fell,met,knew,brought,bought,sat,lost,found,forgot,hung,threw,began,
        held,felt,ate,drank,done,spent,built,caught,fought,hid,led,grew,flew,read,cut,hit,wore,stole,swore,tore,let me,
        you let,you put,i let,i put"""
    )
)
PRESENT = _found(
    r"is|are|am|take|takes|end|ends|come|get|has|have|says|costs|\w+s"
)  # enough for a known fact
# What is asked, supposed or proposed, and so no fact.
UNREAL = _found(
    r"please|if|want|need|expect|won't|will|'ll|\w+'ll|would|\w+'d (?:be|like|have)|could|can|can't"
    r"|should|shall|might"
    r"|let's|maybe|perhaps|refuse|must"
)
VAGUE_TIME = _found(
    _any(
        """a while,for ages,ages,lately,often,sometimes,now and then,all the time,mostly,rather a lot,a lot lately,
        recently,constantly,again and again,so many times,more and more,for a long time,a lot has,usually,too often,
        over my head,things do,these days,long enough"""
    )
)
YOU_ABSOLUTE = _found(
    r"(?:you(?:'ve|'re| have| are)?|he's|she's|i'm|it's|they)(?: [\w']+)? (?:always|never"
    r"|constantly)(?: \w+)?"
    r"|you \w+ (?:everything|nothing|all)(?: \w+)?|you (?:\w+ ){1,6}(?:every time|all the time"
    r"|every day of the week)"
)
MIND_READING = _found(
    r"you (?:just |only |obviously |clearly )?(?:want|wanted) (?:me )?to (?:hurt|annoy|punish"
    r"|embarrass|control|beg|make me)"
    r"|you (?:don't|do not|didn't) care|deep down you|you think (?:i'm|i am|you're|you are|that)"
    r"|you (?:just|only) (?:think|care) \w+"
    r"|on purpose|you enjoy (?:\w+ing)|you couldn't care less|you hate me|you want me to (?:feel|beg"
    r"|suffer)"
    r"|you did (?:it|this|that) to (?:hurt|annoy|spite)"
)
JUDGEMENT_WORD = _any(
    """lazy,selfish,rude,careless,unreliable,thoughtless,inconsiderate,petty,greedy,childish,unfair,mean,stupid,ridiculous,
    crazy,impossible,hopeless,immature,disgusting,disrespectful,arrogant,irresponsible,dishonest,useless,pathetic,
    incompetent,ungrateful,cruel,heartless,terrible,awful,horrible,bad,a danger,ignorant,spoilt,spoiled,sloppy,nasty,
    insensitive,egoistic,egotistical,self centred,self - centred,untrustworthy,unprofessional,shameless,fake,toxic,
    insane,dumb,an idiot,jealous,bossy,messy,filthy,dirty,out of your mind,playing games,obnoxious,outrageous,cold,
    not to be trusted"""
)
JUDGEMENT = _found(
    rf"you(?:'re| are| were|'ve been| have been|'ve become| have become| act| sound)"
    rf"(?: (?!not\b|never\b|no\b|right\b|ill\b)(?:[\w']+ ){{0,2}}?)? ?{JUDGEMENT_WORD}|you {JUDGEMENT_WORD}"
    r"|(?:how|so|such|that's|this is|that is) (?:\w+ )?(?:selfish|rude|lazy|pathetic|childish"
    r"|disgusting|ridiculous|stupid)"
    rf"(?: of you)?"
)
INSULT = _found(
    _any(
        """idiot,liar,cheat,thief,parasite,slob,freeloader,freeloaders,jerk,loser,fool,clown,pig,coward,brat,snitch,snitches,
        hypocrite,tyrant,slumlord,vulture,crawler,cheapskate,big baby,lump,slave driver,burglar,moron,bully,
        monster,witch,
        villain,snob,leech,freak,baldy,sleepyhead,napoleon,your majesty,your highness,bore,
        egoist,princess,dinosaur,dictator,
        spineless,shut up,get lost,go to hell,screw you,damn you,grow up,get a life,get over yourself,how dare,
        the nerve,nothing but a,excuse for a,dear genius,genius,peasant,scrooge,snake,rat,
        pest,control freak,drama queen"""
    )
)
# Another's word turned round, mockery, or contempt.
COUNTER = _found(
    r"look at you|listen to yourself|look in the mirror|you should talk|what a joke|give me a break"
    r"|spare me|who asked you|you people"
    r"|you lot|save your breath|big words|oh please|bravo|you call that|how convenient|! you (?:can't"
    r"|wouldn't|never|couldn't|don't)|"
    r"you can't even|you (?:wouldn't|couldn't) (?:even|survive|know)|never lift a finger"
    r"|so what's your excuse|look who"
    r"|says the (?:man|woman|one|person)|you of all people|coming from you|like you (?:lot )?(?:do"
    r"|are)?[.!]|so don't lecture"
    r"|who do you think you are|at least i|don't you dare|mind your own|(?:buy|get) yourself|even read"
    r"|even spell"
    r"|and (?:you|your) (?:[\w']+ )?(?:always|never|like|are only|'re only)|and you're (?:only|just|no"
    r"|a|an|so)"
    r"|you (?:wreck|ruin|spoil|destroy|grab) (?:everything|it all|all)|you've become|you always have"
    r"|with a brain|(?:had|have) a spine"
    r"|what would you know|you'd know|you manage that|hear yourself|you landlords|for once in your life"
    r"|without me (?:this|the|you)|everyone except you|too busy|in your life|good for you|typical"
    r"|go to them|who wants"
    r"|you aren't|don't flatter yourself|save up for|somebody has to|who's paid for"
)
NAME_CALL = re.compile(
    r"(?<![\w'])(?:(?:,|because|for|like) you|, you)(?: (?!know|see|two|both|all|too|guys|then|can"
    r"|could|get|have|are|will|may"
    r"|keep|choose|decide|say|did|do|were|had|always|never|and|or|if|in|on|at|with|for|might|must"
    r"|need)[a-z]+){1,3} [.!]"
)
RETORT = re.compile(  # it begins with the other's word turned round
    r"^(?:and (?:you|your|you're|you've|who|whose|how|what)|sure , \w+ [.!]|really \? you"
    r"|oh , (?:bravo|great)|wow)(?![\w'])"
)
CALLED = _found(  # "you're a ...", said in no friendly way
    r"you(?:'re| are)(?: (?:such|just|only|nothing but|really))? an? (?!good|great|dear|friend|mother"
    r"|father|kind|best|real|big help|colleague|busy|nurse|smart|wonderful|lovely|nice|part|member"
    r"|fair|bit|little|grown|fine|patient|generous|quick|team|big part|long|few|day|week|help)[a-z]+"
)
THREAT = _found(
    r"or else|one more time and|i'll make sure|i will make sure|you'll (?:regret|be sorry|see what"
    r"|pay for)|you will (?:regret|be sorry)"
    r"|i'll tell (?:everyone|everybody|your)|or i'll (?:tell|call|leave|quit|throw|never)|or i will"
    r"|your tyres|i'm warning you"
    r"|last warning|watch out|or you're out|never speak to you|don't make me|i'll sue|we're done"
    r"|we are done"
)
GIVE_IN = _found(
    r"forget (?:it|that i|what i|i said|about it)|i take it (?:all )?back|(?:it's"
    r"|it is) nothing , (?:really|forget)"
    r"|keep (?:the jar|it all|them all)|put me down|i'll (?:just )?(?:manage|do it myself|leave it"
    r"|live with it|get used to it|pay(?= [,.!]))|i don't mind , really|drop it|do what you want"
    r"|whatever you want"
    r"|as you like|i'll maybe just|but fine|you win|let us forget|let's forget|i give up|i will do it"
)
OFF_TOPIC = _found(
    r"by the way|speaking of|did you (?:watch|see|hear)|have you (?:heard|seen)|how was (?:your|it)"
    r"|what about the weather"
    r"|the weather|the match|the final|just the lift|anyway , (?:how|what|did)"
)
FEELING_WORD = _any(
    """angry,annoyed,hurt,sad,upset,worried,tired,exhausted,lonely,ashamed,stressed,nervous,anxious,afraid,scared,
    frightened,frustrated,disappointed,embarrassed,humiliated,overwhelmed,furious,irritated,uncomfortable,uneasy,
    touched,moved,happy,glad,proud,relieved,grateful,torn,tense,sore,drained,worn out,concerned,unhappy,
    insecure,helpless,
    desperate,resentful,guilty,confused,miserable,left out,let down,betrayed,rejected,unsettled,bitter,fed up,
    fond,bypassed,
    alone,excited,calm,lost,shocked,thankful,terrified,devastated,hopeful,small,discouraged,ignored,jealous,offended,
    bothered,mad,cross,pleased,shaken,numb,heartbroken,panicked,puzzled,distressed,troubled,restless,weary,dismayed"""
)
GAP = r"(?: (?!not\b|that\b|you\b|like\b|never\b|sorry\b|as\b|being\b)[\w',]+)"
FEELING = _found(
    r"i(?:'m| am| was| feel| felt|'ve been| have been| get| got| become| became| still feel| had felt"
    rf"|'ve felt){GAP}{{0,3}}? "
    rf"{FEELING_WORD}(?! (?:to (?!ask|say|hear|see)|if|when i can))"
    rf"|(?:makes?|made|leaves?|left) me(?: feel)?{GAP}{{0,2}}? {FEELING_WORD}"
    r"|i (?:miss|fear|dread|worry) \w+|i love (?!it|to|when)\w+"
    r"|(?:it|that|this) (?:really )?(?:scared|frightened|hurt|hurts|saddened|saddens|worries|worried"
    r"|annoys|annoyed|upset|stung|embarrassed) me"
)
HALF_FEELING = _found(
    r"i feel (?:that|like|as)|i felt (?:that|like) you|it (?:does )?(?:stings?|hurts)|(?:gets to|wears"
    r"|is wearing|leaves|weighs on|sitting heavy on) me"
    r"|it feels (?:as|like|slightly|a bit|unfair|\w+)|a bad taste|(?:it's|it is|it's been|has been"
    r"|is) (?:rather |quite |all )?(?:a lot|too much|rather much|much)"
    r"|a rough (?:week|time)|i can't go on|i cannot go on|i've had (?:it|enough)|sick of|at my limit"
    r"|no fun|a bit sad|hard (?:on|for) me"
    r"|not easy for me|this is hard|more than that|bothers me|it does sting|leave me dangling"
    r"|leaves me|tough for me|i can't take"
)
VERBS = _any(
    """bring,take,put,call,ring,tell,ask,pay,give,send,keep,leave,stop,let,come,use,wash,clean,share,drive,help,turn,
    write,answer,walk,pick,wait,swap,try,show,return,transfer,collect,pass,sign,print,water,vacuum,correct,apologise,lend,schedule,allow,avoid,limit,arrange,phone,text,
    message,mail,email,clear,sweep,mow,reduce,approve,grant,assign,take over,tell me,
    look for,trade,hand over,sit down,repair,fix,fill,finish,start,move,drop,check,meet,respect,
    lower,make,save,add,hand,settle,cover,join,cook,remove,delete,book,plan,name,include,introduce,credit,forward,
    explain,knock,respond,reply,treat,set,carry,load,empty,feed,change,hold,choose,split,fetch,tidy,park,close,mention,
    play,arrive,work,look after,do the,do your,do it,do that,do friday,do the shopping,be here,be there,be on time,
    be ready,be back,be quiet,have it,have the,have my,get up,get the,get somebody,switch,store,lock,put away,count,
    speak to,speak with,talk to,say my,include me,read,refund,confirm,order,stick to,invite,warn,let me,hang,do"""
)
# A request that is an imperative: it begins a clause.
IMPERATIVE = re.compile(
    r"(?:^|(?<=[.!?;:,_-])|(?<=\bbut)|(?<=\bso)|(?<=\bor)|(?<=\bjust)|(?<=\bnow)|(?<=\bplease)) ?"
    rf"(?:(?:please|then|so|and|now|instead) ,? ?)?(?:(?:don't|do not|never) )?{VERBS}(?! (?:you|i|we"
    r"|they|he|she|yourself|place|on me|care|them alone|mind)\b)(?![\w'])"
)
PLEASE = _found(r"please (?!don't (?:worry|mind|be)\b)\w+|, please|please [.!?]")
ASK = _found(
    r"i (?:really |still |do )?(?:want|need|expect|insist|demand|request)|i(?:'m| am) asking(?: you)?"
    r"|i ask(?: you)? (?:for|to|that)"
    r"|i(?:'d| would)(?: \w+)? like (?:you|your|it|this|that|the|an?|my|him|her|them|none|no)\b"
    r"|(?:has|have) to be (?!found)\w+ed|(?:has|have) to be paid|you (?:need|have) to \w+"
    r"|that's what i want"
    r"|(?:can|could|will|would) you (?:please )?(?!mind|imagine|believe|even|lower)\w+|can i count on"
)
REFUSE = _found(
    r"i (?:won't|will not|refuse|cannot|am not going to|'m not going to)|i'm not (?!trying|saying"
    r"|asking|cutting|keeping|accusing|blaming|calling|attacking|being|going to fight|thinking"
    r"|complaining|having|counting)\w+ing"
    r"|i'm still saying no|(?:a|is a|it's a) no (?:from|this|for|to)|is a no|my answer is no"
    r"|the answer is no|i say no|no , i"
)
HINT = _found(
    r"(?:would|'d|it'd|that'd|might|could|\w+'d) (?:\w+ )?(?:be )?(?:sort of |kind of |slightly |so "
    r"|a bit |more )?(?:nice|nicer|good|better|lovely|great|helpful|handy|easier|smoother|relaxed"
    r"|different|something)(?: \w+){0,4} (?:if|with|when|to have)"
    r"|i (?:was|am|'m) (?:\w+ ){0,2}?(?:wondering|hoping)|i (?:only|just) (?:hoped|thought|wondered"
    r"|wanted|meant)|i (?:hoped|wondered)"
    r"|something (?:has|needs) to (?:change|be found|happen)|if you (?:could|would|might)|if (?:it|one"
    r"|there|somebody|that|everyone) (?:could|might|would|were|was)"
    r"|(?:is|might) there (?:be )?any (?:chance|way)|might be (?:good|nice)|(?:perhaps|maybe) (?:if"
    r"|whenever|you|one|something|somebody|another)"
    r"|i'd (?:maybe|perhaps) like|can't go on like this|i don't think i can|i guess i"
    r"|it could (?:maybe|perhaps|possibly)|might go|it might"
    r"|i'm thirty|i don't really|has to change|i may|it would be nice|more it's|not exactly mind"
    r"|wasn't sure whether"
)
CONDITION = re.compile(  # "if you bring it back", "with the bass down"
    r"(?<![\w'])(?:if (?:you|they're|they|everyone|we)(?:'re)? (?!do(?: that| so| this"
    rf"| it)? )(?:\w+ ){{0,2}}?(?:{VERBS}|back in)"
    r"|with (?:the|a) (?:\w+ )?(?:back in|filled|down|full|off|away))(?![\w'])"
)
GOOD_FOR_YOU = _found(
    r"(?:and|then|way|,|:|-|;) (?:then )?(?:you(?:'ll|'d| will| would| can| get| needn't| won't| save"
    r"| keep)|(?:the \w+|he|she|they|we|dad)(?:'ll|'d| will| would| can| gets))"
    r"|you(?:'ll| will|'d| would) (?!have to|need to|regret|be sorry|know[ ,]|better|pay for|see what"
    r"|see [.!])\w+"
    r"|you(?:'d| would) (?:get|have|skip|save|be|find|never|gain|see|keep|come|finish|know|sleep|win"
    r"|still|also|land|start|start)"
    r"|you get|you gain|you can then|you needn't|you (?:\w+ )?save|that way you|so that you|it means"
    r"|for you it|he gets|we'll (?:both )?(?:have|get|sit|be)|you'd have|i'm (?:glad|happy) to"
    r"|people will|(?:i'll|i will|i'd) (?:be out to |gladly |happily |say no more|give you|cook"
    r"|be glad|thank|lend|help|bring|work)|you two needn't|your phone stays|without (?:me|a grudge"
    r"|anyone)"
    r"|instead of (?:\w+ ){1,4}|lie quietly|will be (?:easier|better|calm|good) for you|better for you"
    r"|good for you|helps you|makes it easier for you|easier for you"
    r"|laugh with you|then land on|turn faster|no complaint|you'd never|both sit"
)
TIED = _found(r"if you do|that way|it means|you get|in return|here is what you")
GOOD_FOR_ALL = _found(
    r"(?:nicer|better|easier|smoother|good|lovely|pleasant|relaxed|simpler|handier|motivating|calmer"
    r"|nice|best)(?: \w+)? for (?:me|us|everyone|everybody|all|both|the (?:team|family))"
    r"|i'd (?:be|have) (?:in )?(?:a |more |much |so )?(?:\w+ )?(?:happier|nicer|better|cheerful|glad"
    r"|mood|time|calmer|off)|better all round|things would be (?:easier|better|nicer)|all round"
    r"|(?:be|is) (?:nicer|easier|smoother|better|good)(?! if)|i'd like to be done|more relaxed"
    r"|for both of us|in general|a clean corner is|would like it|better off|everyone would"
)
OFFER = _found(
    r", or (?!else|so|something|whatever|less|not|no|two|three|i'll (?:tell|leave|quit|call|throw)"
    r"|you'll)[\w']+ [\w']+|"
    r"let's (?:swap|skip|count|split|share|say|do|try|meet|take|agree that|alternate|phone|make it)"
    r"|how about|what if (?:we|i|you)|shall we say|my offer|i(?: can)? offer|here is (?:what i offer"
    r"|my offer)"
    r"|or (?:we|you|i|i'll|put|tell|clean|give|hand|he|she|five|from|by|have|move|take|make|let|send"
    r"|do|pay|at|on|half|any|some days|leave it|call|write|bring|we'll)(?: \w+)"
    r"|(?:i'll|i will|i can|i could|i'd gladly|i'd|we'll|we can"
    r"|we could) (?:(?!not )\w+ ){0,8}?(?:if you|if somebody|and you|while you|until|half|instead"
    r"|from august|two nights|each(?! other)|at a fixed|whoever|for you)"
    r"|you (?:\w+ ){1,6}(?:,|and) (?:and )?(?:i|i'll|i will|the neighbour|we) (?:take|do|bring|will"
    r"|pay|dry|keep|cover|'ll|go|have|cook|drive)"
    r"|every other|half (?:of it|now|past|each)|instead , |in return|in exchange|a trade|trade"
    r"|meet (?:you|me) halfway|ten each|sixty to forty|as long as you|while you take|would suit me"
    r"|would do|if it's easier|by hours"
    r"|(?:two|three) days(?: ,|, though)? (?:at|though|,|instead)|two days , though|i can come for"
    r"|i could bring|with others there|just us two|(?:i|we) (?:can |will |could )?(?:come|stay|do it"
    r"|try it) for (?:two|three)|as a start|to begin with|for a real emergency"
    r"|(?:saturdays|weekends|fridays|sundays) until|percent now|go on with|i'd run|(?:if|when) (?:he"
    r"|she|you|they) (?:takes?|pays?|covers?|carry|carries) (?:a|his|her|your|the|over)"
    r"|i'll bake|and hand my|i'll start at|then (?:swap|do|move|have)|we'll share|join my|we can swap"
    r"|i'd gladly give|split it"
)
SOME_WAY = _found(
    r"(?:some|a|another|any) (?:\w+ )?(?:way|solution|compromise|option|arrangement|middle way"
    r"|middle ground|rhythm|sign)|some sort of|alternatives|agree on something|find something"
    r"|work something out|sort (?:this|it|something) out"
    r"|(?:something|anything) (?:could be|can be|small is|moved|might be) ?(?:arranged|done|possible)?"
    r"|find (?:some|one|somebody)|find a way|meet in the middle|some relief|share it out"
    r"|has to be found|we'll find|if something moved|in some way"
)
HEDGE = _found(
    r"kind of|sort of|i guess|i suppose|i don't know|i mean|no rush|(?:just|only) (?:wondering"
    r"|wondered|thought|hoping|hoped)|was wondering|never mind|don't worry"
    r"|i'm not sure|i wasn't sure|i may have|don't take my word|not necessarily|if that's not"
    r"|if it isn't|only if you like|if it's not|if you don't mind|if it isn't too|if that makes sense"
    r"|i could be wrong|i might be wrong|it's just that|it's only that|no big deal|not a big deal"
    r"|no pressure|just an idea|just a thought|only an idea|feel free to|you don't have to"
    r"|if it's no trouble|if it's too much|i'd hate to|it's okay if not|if possible|if it's possible"
    r"|i was thinking maybe|i'm probably|by no means urgent|sorry to bother|if you could maybe"
    r"|not that it matters|it's fine if|whenever you've|possibly|um|uh|er|hm|at some point"
    r"|however you see it|in whatever form|it doesn't matter|i hate to|if at all possible|i was hoping"
    r"|ish|more or less|whatever suits you|sort of like|it might be|i was just|i was kind"
    r"|a tiny bit|not exactly|by any chance|if you want to|i don't want to be|i (?:don't|do not) mind"
    r"|i do not know|something like that|when it suits you"
)
SOFT_HEDGE = _found(
    r"maybe|perhaps|might|probably|a bit|slightly|rather|sometimes|just|quite|some|could|somehow"
)
SELF_DOUBT = _found(
    r"i'm (?:probably |just |only |being |so |terribly |really )*(?:silly|overreacting|hopeless|slow"
    r"|petty|difficult|bad at|no expert|not (?:really )?(?:that )?good|odd|too sensitive|so stupid"
    r"|being silly|the one who's|a burden|wrong)|petty of me|it's silly|i'm not sure"
    r"|it's probably (?:me|nothing|annoying|silly)"
    r"|i shouldn't be|i'm doing it wrong|doing it wrong|maybe i'm|i feel (?:bad|terrible|awful|silly"
    r"|stupid)|i'm sure i'm|my fault|i deserve|it's my fault|it is my fault|i have it wrong"
    r"|i'm not that|who am i|i am bad|i am wrong"
)
APOLOGY = _found(r"(?<!be )sorry|i apologi[sz]e|my apologies|forgive me|pardon me|excuse me")
# An apology for what one did, or regret of what befell the other, is due.
DUE = re.compile(
    r"(?:sorry|apologi[sz]e)(?: \w+){0,2}? (?:you (?:were|had|have|are)|for (?:what|that|shouting"
    r"|being late|the|my|last|being)|about your|to hear|that (?:i|you) (?:shouted|forgot|were|lost))"
    r"|i was wrong|i blamed"
)
NOT_SAID = re.compile(r"(?:\bnot|n't|\bnever|\bwithout|\bno one|\bnobody)(?: (?!but\b)[\w']+){0,5}$")
