"""Words for make_eval.py: answers, captions and strings that scorers and tokenizers trip over."""

VQA_ANSWERS = """
yes|no|Yes|NO|yes.|no,|maybe|0|1|2|3|10|none|zero|one|two|Three|ten|eleven|a dog|the dog|dog|dogs|The Dogs|an apple|apple
apple, pear|apple,pear|apple and pear|1,000|1,000,000|1,000 people|1, 2|2.5|2.50|3.|.5|a.m.|10 a.m.|10:30|10:30 pm|5'10|5' 10"
dont|don't|Dont know|can't|cant|wont|isnt it|whats that|theyre|youre|its|it's|couldntve|couldn'tve|couldnt've|yall|y'all'd've
Id've|Im|ive|somebody'd|ows'at|'ows'at|'ow'sat|o'clock|3 oclock|twas|'twas|hes|shes|let's|lets|maam|where'd|whered|weve
red/blue|red / blue|red and white|red-white|red - white|black & white|black&white|(left)|left (side)|[1]|{x}|x=y|x + y|x+y
#1|# 1|50%|50 %|$5|$ 5|$1,000.00|c:\\temp|snake_case|a > b|a<b|me@home|`tick`|what?|what ?|what!|wow !|hm;|a;b|"quoted"|say "hi"
"|'|.|..|...|,|-|--|?|!| |  two  words  |new york|New-York|U.S.A.|u.s.|st. louis|mr. smith|no. 5|5 no.|1.5.2|v1.2|www.cnn.com
a|an|the|A|The a an|the a cat|a b c|café|CAFÉ|naïve|straße|ÎLE|İstanbul|ΟΔΟΣ|猫|猫 と 犬|日本|२|१,२३४|٣,٤|½|1½|x²|1.२|😀|😀 yes
zero one two|none of the above|not one|ten ten|nine,eight|seven;six|5 five|four.|four.4|un‑break|en–dash|em—dash|“curly”|it’s
skateboard|surf board|surfboard|tennis racket|racquet|hot dog|hotdog|french fries|stop sign|traffic light|fire hydrant|20|2|15
playing frisbee|frisbee|wii|on table|table|left|right|outside|beach|white|black|brown|gray|grey|blue|green|orange|yellow|pink
""".replace("\n", "|").strip("|").split("|") + [
    "tab\there", "line\nbreak", "\n", "a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v.w.x.y.z.a.b.c.d.e.f.g.h.i.j.k.",
    "", "no-break\u00a0space", "file\x1cseparator", "wide\u3000space",
]

NAMES = """man|woman|child|dog|cat|horse|surfer|skateboarder|bus|train|bicycle|motorcycle|pizza|laptop|umbrella|giraffe|zebra|elephant
sheep|cow|fire hydrant|stop sign|tennis player|baseball bat|traffic light|teddy bear|bench|boat|kite|clock|vase|couch|bed|kitchen
beach|street|field|park|table|airplane""".replace("\n", "|").split("|")

CAPTIONS = [
    "A {0} standing next to a {1}.",
    "A {0} standing next to a {1} in front of a {2}.",
    "a {0} and a {1} near the {2}",
    "The {0}'s {1} is on the {2}.",
    "Two {0}s, one {1} and a {2}, are by the {3}.",
    "There is a {0} (and a {1}) behind the {2}.",
    "A \"{0}\" sign above the {1}.",
    "A black-and-white photo of a {0} with a {1}.",
    "A {0} isn't looking at the {1}; it's watching a {2}...",
    "A {0} rides a {1} -- fast -- past the {2}!",
    "Is that a {0}, or a {1}?",
    "A {0} \u2013 seen from above \u2013 beside a {1}.",
    "A {0}/{1} at 10:30 a.m. on the {2} in St. Louis.",
    "A {0} w/ a {1} & a {2} for $5.00 at the 1990's {3}",
    "The the the {0} the {1}",
    "A {0} holding a {1} while a {2} looks on near a {3}.",
    "An image of a {0} 'jumping' over a {1}.",
    "A {0} ,a {1} .And a {2}",
    "caf\u00e9 table with a {0} and \u201cfresh\u201d {1}",
    "3 {0}s and 2 {1}s: no {2} [close-up]",
]

# One line, one string; the tokenizer is asked about each line, and about each of its words by itself.
TRICKY = """this is plan B.
this is plan b.
vitamin C. and more
he has no.
sign no. 5
a sign that says no. 
street st.
elm st. sign
main ave. and 5th ave.
ave
a u.s. flag
a U.S. flag
U.S. Flag
the u.s.
wii's controller
the men's room
dogs' tails
boys'
'hello'
'hello there' he said
the 'stop' sign
can't won't don't Didn't DIDN'T ain't
dont cant
I'm I'd I'll you're we've he'd've
o'clock o'neill rock 'n roll rock n' roll n'sync
t-shirt tee-shirt x-ray
mid-air- jump
pre- and post-war
-5 degrees
+5 and -5.5 and .5 and 5.
1,2,3
1,000,000
1.000,50
12:30pm 12:30 pm 12:30
3:15
10-15
5-year-old
10% $5 5$ 5¢ £5 €5 ¥5
#1 # 1 #hashtag
@user @ home
a&b a & b AT&T M&M's M&Ms R&R
w/ w/o and/or 1/2 3/4 half/half
1/2-inch 12/25/2014 1/1
5ft 5' 5" 5'10" 6'2
a.b.c a.b. e.g i.e. ie.
hello.world hello.World hello .world
hello,world hello ,world hello , world
hello;world hello:world
hello!world hello?world
(hello) (hello world) [hello] {hello}
<hello> <b> </b> < hello >
"hello" ''hello'' ``hello`` `hello`
“hello” ‘hello’ „hello‟ «hello» ‹hello›
... .. .... … . . .
-- --- ---- – — ―
!! !? ?! !!!
* ** *** a*b
_ __ ___ a_b ____
= == => -> <- <=
~ ~~ ^ | \\ / //
& && + ++ 
% %%
Mr. Mrs. Ms. Dr. Prof. St. Ave. Blvd. Rd. Jr. Sr. Co. Corp. Inc. Ltd. vs. etc. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sept. Oct. Nov. Dec.
mon. tue. wed. thu. fri. sat. sun. x
calif. tex. ariz. fla. mass. x
no. 5 nos. 5 vol. 5 fig. 5 pp. 5 p. 5 art. 5 sec. 5 x
gen. col. lt. sgt. capt. maj. rep. sen. gov. pres. rev. hon. x
approx. est. dept. univ. assn. bros. mfg. ft. in. lb. lbs. oz. min. hr. hrs. sec. mt. x
e.g. i.e. a.m. p.m. a.k.a. etc. ca. cf. al. x
a. b. c. A. B. C. x. y. x
ph.d. Ph.D. m.d. b.a. d.c. l.a. n.y. u.k. u.n. x
J. R. R. Tolkien and J.K. Rowling
i. am
end a.m.
it is 5 p.m. now. The end.
it is 5 p.m. The end.
he is jr. The end
cat's cats' cat' 'cat cat'n'dog cat'dog ca'n't
'em 'n' 'bout 'cause 'til 'til' 'round
'90s '90 80's 80s' '5
y'all y'know ma'am o'er e'er d'etre l'oreal o'reilly
rock-n-roll rock'n'roll rock-'n'-roll
she'sgood its' it's'
don`t don´t don′t don‘t
isn't, (isn't) isn't. isn'tit n't 't 's 'll
a's b's 1's A's
u-turn u - turn u -turn u- turn -turn turn-
black-&-white black&white black & white
state-of-the-art ex-wife- --end end--
one—two one–two one―two
10-12-2014 2014-10-12 555-555-5555 (555)555-5555 1-800-555-1234
1st 2nd 3rd 4th 21st 1960s 1960's
2x4 2-by-4 2 x 4 8x10" 3d 3-d 50mph 50-mph
1,5 1.5 1. 5 1 ,5 $1 $1.50 $1,000 US$5 C$5 A$5 $.50
3/4" 1/2' ½ 2½ ¼-inch
a/b a/ b a /b a / b a//b and/or/not http://a
www.example.com example.com example.org/path http://example.com/a?b=c&d=e#f https://x.y
foo@bar.com @foo #foo #1foo foo#bar foo@bar
:) :-) ;) :( :D :P XD <3 :/ :-/ =) ^_^ o_O :'( (: 
&amp; &lt;b&gt; &quot;hi&quot; &nbsp; &#39; &apos; a&amp;b
<br> <br/> <p class="x"> </p> <!-- c --> <5 5> a<b a>b a < b
© ® ™ ° ± × ÷ § ¶ • · ¿que? ¡hola!
café naïve façade Ångström ñandú Ελλάδα Москва 東京 한국 العربية हिन्दी
🐶 dog🐶 dog ❤ ☺ ★ ✓ → ♥ 👍🏽
a_b a__b _a a_ a-b_c a.b_c
a=b a+b a^b a~b a|b a\\b a%b a$b a*b a#b
C++ c# .NET A+ B- C+ node.js
\\/ \\* \\\\ 
[a] [ a ] {a} (a) (a (a) a) (s) dog(s) (dog)s
hello...world hello... world ...hello hello…world a..b a....b
no.1 No.1 no.1. #1.
3,000.5.2 192.168.1.1 1.2.3 v1.2 2.0b
AAA A.A.A. AAA. A.A.A
8:30-9:30 8:30-9:30pm 7am 7a.m. 7 AM 7:00AM
2014-10 2014-2015 10-1000 3-4 100-200 1000-2000 1-2-3 a-1 1-a 12-34-56 x-1-y
café-bar bar-café naïve/x a/b/c a/b/c/d a-b-c-d-e/f foo/bar-baz ab-cd/ef-gh 1/2/3 1/2/2014 1/2/3/4
this.that.other hello.5 5.hello hello.5x a.bc ab.c ab.cd.ef. www.foo end.Next end?Next end!Next end,Next what?!Next a?b 1?2 a!b
x:y 5:y x:5 1:2 1:2:3 a:b:c 1;2
(555) 123-4567 555.123.4567 +1 555 123 4567 (555) 1234 (55) 1
I'M HE'S ISN'T I’M isn’t DON’T 'S 'T IT'S' it''s 
cannot Cannot CANNOT gonna wanna gotta lemme gimme gonnabe cannot. 'tis 'twas 'Tis 'Twas ’tis it'sn't shouldn't've 'd 'll
'em 'Em ’em 'n ’n '90s ’90s ‘90s 'til 'cause 'kay 'cos 'fore 'nother 'bout 'round 's 'twill 'neath 'ere 'er
ne'er e'er ma'am ma’am o'clock 2 o'clock 5o'clock d'oh l'chaim c'mon qu'il s'more ol' goin' nothin' li'l ev'ry y'all y’all ya'll
U.S.A U.S U.S., U.S.' U.S.'s u.s.-based A.B.-C a.m.-p.m. e.g., D.C., J.F.K's
John.Smith john.smith@x.com john_smith file.txt image.jpg pic.PNG foo.c foo.py x.html index.htm a.b.com foo.info bar.tv abc.us x.co.uk bit.ly/abc
:-) ;-) :-( :-D :D :d :P :p :O :o :| :\\ :] :[ :} :3 =( =D =P 8) 8-) B) >:( :-| :* :-* ;D xD =/ :') ;P (; (= d: T_T >_< -_- ._. o.O ^^ <333 <3 </3
<a> <A HREF='x'> <x <1> <a b <img src=x /> </a <!DOCTYPE html> <?xml version="1.0"?> <-- <hello there> <Hello, World!>
¼ ½ ¾ ⅓ ⅔ ⅛ 1½ 1 ½ ½cup x½
£5 £ €5 € ¢ ¥ ₤ ₣ ₩ $ US$ USD$ NZ$ HK$ R$ 5USD $5m $5.5bn $-5 -$5
a–b a — b a - b a--b a---b a -- b -a- --a a- a-- -- ---
.. . .. . . . .a a. a.. a... .a.b ..a . . . .
!! ! !? ??? !.! ?. .? !, ,, ,,, ;; ;) ::
* ** a** **a** _a_ __a__ #a# ~a~ `a` ^a ^ |a|
‘a’ ’a’ ‚a‘ “a” „a“ ”a” ′ ″ ´a´ ʼa it‘s it′s itʼs
a b a\u3000b a\u200bb a\xadb a\u200db a\ufeffb
hello.5 5. hello.world's a.b's hello!world's isn't.that we're.not
it's.a don't!go the cat's.dog
man-made's t-shirts' U.S.-made non-U.S. anti-U.S
CO2 H2O MP3 mp3s B&W b&w B&B S&P 500 Q&A q&a A&W A & W AT&T's Johnson&Johnson J&J's
#5 #5's # #a1 #1a #-a #a-b #a_b @a_b @1 @a1 @a.b
a@b a@b.c a@ @ a@b.com. mail:x@y.org <x@y.org>
http://x.com. http://x.com, (http://x.com) "http://x.com" www.x.com. www.x.com/ x.com/ x.com.
www.x x.net x.org x.edu x.gov x.biz x.coma com.x
-a --a -5 -5a - 5 --5 a-5 5-a -5-5 +a ++ + a
3.5mm 35mm f/2.8 1/125 1,000th 100% 100 % 3% 0.5% .5%
6'4" 6ft. 6 ft. 6in 12" 12" x 14" 12x14
a/c A/C w/out b/w h/o N/A n/a I/O 24/7 9/11 50/50
1980's 80s '80s mid-1980s mid-'80s 80s-style
10:30a.m. 10a.m. 10pm. 10 p.m.
Wash.'s Dr.'s St.-Denis Ste.-Marie
rock&roll rock & roll salt&pepper salt&pepper's
isn 't is n't don 't can' t
three-and-a-half-year-old on-the-go-to-market-of-it a-b-c a--b-c a-'b b-"c"
well-"known" so-called 'so-called' 'tis' "'Tis" ('twas)
x... x.... x.. ...x . ..x
"A.B." 'A.B.' (A.B.) A.B.) Mr.Smith Mr.  No.5 No.x no.x
José's l’été aujourd'hui d’accord
&nbsp;x x&nbsp;y &copy; &eacute; &amp &foo; &#169; &lt;br&gt;
\\n a\\nb \\" \\' \\\\ a\\ b
[url] [1] {1} ((a)) [[a]] :(a) (a): (a):) :-))
=)) :)) ;)) :((( :DDD xDDD
☺️ ❤️ 1️⃣ ™️ a™ ©2014 25°C 25 °C 25° ½" 
ﬁre ﬂag Ⅳ ① ㎏ ½½ x² m³ H₂O
مرحبا بالعالم שלום สวัสดี नमस्ते
a̐ é ñ
٣ ३ ๓ 3٣
a'bcd b'bcd c'bcd d'bcd e'bcd f'bcd g'bcd h'bcd i'bcd j'bcd k'bcd l'bcd m'bcd n'bcd o'bcd p'bcd q'bcd r'bcd s'bcd t'bcd u'bcd v'bcd w'bcd x'bcd y'bcd z'bcd
A'Bcd C'Bcd J'Bcd M'Bcd S'Bcd T'Bcd N'Bcd Y'Bcd D'Bcd O'Bcd L'Bcd qu'bc Qu'bc ab'bc
d'b o'b1 l'b-c o'b-c d'artagnan-x o'neil's o'n't
2014-10-12 2014-10 x 2014-10-1 201-10-12 14-10-12 1-10-12 2014-1 x 123-45 x 1234-567 x 12345-67 x 1-2-3-4-5 x
a1.b2 a1.b a.b2 mp3.x x.mp3 ab-cd.ef ab.cd-ef é.a a.é café.bar
3 1/2 x 10 3/4 x 1 1/2-inch x 5 5/8" x
a/b/c's and/or's x/y.z
'n' 'N' rock'n x'n y 'n'x 'em's
5 555 x 12 345 x 12 3456 x 55 555 5555 x 100 200 300 x 10 20 30 x 1000 2000 x 123 4567 x 20 2000 30000 x
hello-world.com no-one.else ...
AB$ ABC$ A$ B$ D$ E$ S$ Z$ EU$ CA$ MX$ AU$ ab$ a$ us$
A&B AB&CD A&b a&B A&B&C AB&C1 A1&B 7&8
+1 +a 1+1 1-1 1*1 1=1 1x1 1%1 1/1 1.1. 1,1, 1:1: -1- -1.
"""

STRINGS = [caption.format(*NAMES[4 * i % 36:4 * i % 36 + 4]) for i, caption in enumerate(CAPTIONS)]
STRINGS += TRICKY.strip().split("\n") + TRICKY.split()
