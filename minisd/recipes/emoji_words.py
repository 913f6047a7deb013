"""Which emoji are drawn, what they are called, and which pictures are kept from training.

Names are emojibase's English labels, written exactly as there; `emoji_data` stops on a name that does not exist.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.replace("\n", " ").split("|") if name.strip())


# The style word a user types, for each folder of pictures. "modern" is Fluent's coloured set, shaded by gradients.
STYLE_WORDS = {"3d": "3d", "flat": "flat", "modern": "gradient", "noto": "cartoon"}

# Styles that draw nearly the same picture: one of them in training gives away the other.
TWINS = {"3d": "modern", "modern": "3d"}

# Held back whatever the hash says: (concept, style). At most one style for each concept.
HOLDOUT = {("red apple", "flat"), ("dog face", "3d"), ("rocket", "3d"), ("sunflower", "flat")}

GROUP_WORDS = {
    "smileys-emotion": "smiley",
    "people-body": "people",
    "animals-nature": "nature",
    "food-drink": "food and drink",
    "travel-places": "travel",
    "activities": "activity",
    "objects": "object",
    "symbols": "shape",
}

# Left out whole, except for COLOURED: plain shapes that teach the names of the colours.
DROPPED_GROUPS = {"symbols", "flags", "component"}
DROPPED_SUBGROUPS = {"family", "person-symbol"}
COLOURED = r"(red|orange|yellow|green|blue|purple|brown) (circle|square)"

# Labels that are left out where they match in full: clocks but one, gendered repeats, pictures of writing.
DROPPED = (
    r"(?!three).*o’clock|.*-thirty|.*facing right|(?:deaf|pregnant) .*|person: .*"
    r"|(?:man|men|woman|women) (?!feeding|dancing)[a-z-]+ing\b.*|(?:man|woman|person) feeding baby|breast-feeding"
    r"|(?:man|woman) (?:health worker|student|teacher|judge|farmer|cook|mechanic|factory worker|office worker)"
    r"|(?:man|woman) (?:scientist|technologist|singer|artist|pilot|astronaut|firefighter|police officer)"
    r"|(?:man|woman) (?:detective|guard|construction worker|superhero|supervillain|mage|fairy|vampire|elf|genie)"
    r"|(?:man|woman) (?:zombie|mountain biking|in .*|with (?!headscarf).*|wearing .*)|(?:men|women) with bunny ears"
    r"|Mx Claus|middle finger|eye in speech bubble|left speech bubble|right anger bubble|dotted line face"
    r"|map of Japan|low battery|bell with slash|mobile phone with arrow|e-mail|dvd|chart increasing with yen"
    r"|love hotel|bus stop|stop sign|high-speed train|open mailbox with lowered flag|hundred points"
    r"|closed mailbox with lowered flag|mahjong red dragon|cigarette|hole"
)

# Concrete things that look like nothing else in the list and that anyone can name: training starts on these.
CORE = _names(
    """
    monkey face | monkey | gorilla | dog face | dog | wolf | fox | raccoon | cat face | cat | lion
    | tiger face | tiger | horse face | horse | unicorn | zebra | deer | bison | cow face | cow | pig face
    | pig | ewe | goat | camel | llama | giraffe | elephant | rhinoceros | hippopotamus | mouse face | mouse
    | hamster | rabbit face | rabbit | beaver | hedgehog | bat | bear | polar bear | koala | panda | sloth
    | skunk | kangaroo | turkey | chicken | rooster | baby chick | bird | penguin | dove | eagle | duck
    | swan | owl | feather | flamingo | peacock | parrot | goose | frog | crocodile | turtle | lizard
    | snake | dragon face | dragon | sauropod | T-Rex | whale | dolphin | seal | fish | blowfish | shark
    | octopus | spiral shell | coral | jellyfish | crab | lobster | shrimp | squid | snail | butterfly | bug
    | ant | honeybee | beetle | lady beetle | spider | spider web | scorpion | bouquet | cherry blossom
    | rose | sunflower | tulip | seedling | potted plant | evergreen tree | deciduous tree | palm tree
    | cactus | four leaf clover | maple leaf | mushroom | nest with eggs | grapes | watermelon | tangerine
    | lemon | banana | pineapple | mango | red apple | green apple | pear | peach | cherries | strawberry
    | blueberries | kiwi fruit | tomato | coconut | avocado | eggplant | potato | carrot | ear of corn
    | hot pepper | bell pepper | cucumber | broccoli | garlic | onion | peanuts | bread | croissant
    | baguette bread | pretzel | bagel | pancakes | waffle | cheese wedge | meat on bone | poultry leg
    | bacon | hamburger | french fries | pizza | hot dog | sandwich | taco | burrito | egg | cooking
    | green salad | popcorn | butter | rice ball | steaming bowl | spaghetti | sushi | soft ice cream
    | ice cream | doughnut | cookie | birthday cake | cupcake | pie | chocolate bar | candy | lollipop
    | honey pot | baby bottle | glass of milk | hot beverage | teapot | bottle with popping cork
    | wine glass | cocktail glass | beer mug | cup with straw | bubble tea | fork and knife | spoon
    | kitchen knife | jar | globe showing Americas | compass | snow-capped mountain | volcano
    | desert island | classical building | hut | house | factory | castle | Statue of Liberty | church
    | fountain | tent | rainbow | ferris wheel | roller coaster | circus tent | locomotive | bullet train
    | tram | bus | ambulance | fire engine | police car | taxi | automobile | sport utility vehicle
    | pickup truck | delivery truck | tractor | racing car | motorcycle | motor scooter | bicycle
    | kick scooter | skateboard | roller skate | wheel | fuel pump | vertical traffic light | anchor
    | ring buoy | sailboat | canoe | speedboat | passenger ship | airplane | helicopter | rocket
    | flying saucer | luggage | hourglass done | watch | alarm clock | stopwatch | three o’clock
    | crescent moon | full moon | thermometer | sun | ringed planet | star | shooting star | cloud
    | sun behind cloud | cloud with rain | cloud with lightning | tornado | umbrella | high voltage
    | snowflake | snowman | comet | fire | droplet | water wave | jack-o-lantern | Christmas tree
    | fireworks | balloon | party popper | wrapped gift | trophy | soccer ball | baseball | basketball
    | volleyball | american football | tennis | bowling | ping pong | badminton | boxing glove
    | flag in hole | ice skate | fishing pole | diving mask | skis | sled | bullseye | yo-yo | kite
    | pool 8 ball | magic wand | joystick | game die | puzzle piece | teddy bear | nesting dolls
    | chess pawn | artist palette | thread | yarn | glasses | sunglasses | necktie | t-shirt | jeans | scarf
    | gloves | coat | socks | dress | shorts | handbag | backpack | running shoe | hiking boot
    | high-heeled shoe | woman’s boot | crown | woman’s hat | top hat | graduation cap | billed cap
    | rescue worker’s helmet | lipstick | ring | gem stone | megaphone | bell | musical note | microphone
    | headphone | radio | saxophone | trumpet | accordion | guitar | musical keyboard | violin | banjo
    | drum | maracas | flute | mobile phone | telephone | battery | electric plug | laptop
    | desktop computer | printer | computer mouse | floppy disk | movie camera | clapper board | television
    | camera | magnifying glass tilted left | candle | light bulb | flashlight | red paper lantern
    | open book | books | scroll | coin | money bag | dollar banknote | credit card | envelope | package
    | postbox | pencil | pen | paintbrush | briefcase | pushpin | paperclip | straight ruler | scissors
    | wastebasket | locked | key | hammer | axe | dagger | crossed swords | bomb | bow and arrow | shield
    | carpentry saw | wrench | screwdriver | nut and bolt | gear | balance scale | hook | toolbox | magnet
    | ladder | test tube | dna | microscope | telescope | syringe | pill | adhesive bandage | stethoscope
    | door | mirror | window | bed | couch and lamp | chair | toilet | plunger | shower | bathtub | razor
    | broom | basket | bucket | soap | toothbrush | fire extinguisher | shopping cart | grinning face
    | face with tears of joy | slightly smiling face | upside-down face | winking face
    | smiling face with halo | smiling face with heart-eyes | star-struck | face blowing a kiss
    | face with tongue | neutral face | sleeping face | face with medical mask | nauseated face | hot face
    | cold face | exploding head | cowboy hat face | partying face | smiling face with sunglasses
    | nerd face | frowning face | astonished face | loudly crying face | face screaming in fear | angry face
    | smiling face with horns | skull | pile of poo | clown face | ogre | goblin | ghost | alien
    | alien monster | robot | red heart | blue heart | green heart | broken heart | love letter | bone
    | tooth | brain | eye
    """
)

# The everyday word for a label that few would type.
ALIASES = {
    "tangerine": "orange", "automobile": "car", "oncoming automobile": "car", "honeybee": "bee",
    "lady beetle": "ladybug", "evergreen tree": "pine tree", "deciduous tree": "tree",
    "jack-o-lantern": "halloween pumpkin", "sauropod": "dinosaur", "T-Rex": "tyrannosaurus rex",
    "locked": "padlock", "unlocked": "open padlock", "wrapped gift": "gift", "ear of corn": "corn",
    "hamburger": "burger", "doughnut": "donut", "poultry leg": "chicken leg", "meat on bone": "meat",
    "blowfish": "pufferfish", "hot beverage": "cup of coffee", "glass of milk": "milk",
    "soft ice cream": "ice cream cone", "ice cream": "bowl of ice cream", "steaming bowl": "bowl of noodles",
    "cooking": "fried egg", "cooked rice": "bowl of rice", "cheese wedge": "cheese",
    "bottle with popping cork": "champagne bottle", "beer mug": "beer", "wine glass": "glass of wine",
    "cocktail glass": "cocktail", "cup with straw": "soda", "custard": "pudding", "honey pot": "honey",
    "chocolate bar": "chocolate", "shortcake": "slice of cake", "ewe": "sheep", "baby chick": "chick",
    "lion": "lion face", "locomotive": "steam train", "delivery truck": "truck", "fire engine": "fire truck",
    "motor scooter": "scooter", "passenger ship": "cruise ship", "ship": "boat", "flying saucer": "ufo",
    "ringed planet": "saturn", "high voltage": "lightning bolt", "droplet": "drop of water",
    "water wave": "wave", "fire": "flame", "snow-capped mountain": "mountain with snow",
    "desert island": "island with a palm tree", "hourglass done": "hourglass", "three o’clock": "clock",
    "classical building": "temple with columns", "luggage": "suitcase", "tennis": "tennis racket",
    "soccer ball": "football", "ping pong": "table tennis paddle", "badminton": "badminton racket",
    "bowling": "bowling ball and pins", "flying disc": "frisbee", "bullseye": "dart board",
    "video game": "game controller", "game die": "dice", "artist palette": "paint palette",
    "framed picture": "painting", "yarn": "ball of wool", "thread": "spool of thread", "necktie": "tie",
    "jeans": "trousers", "t-shirt": "shirt", "thong sandal": "flip flop", "man’s shoe": "brown shoe",
    "running shoe": "sneaker", "high-heeled shoe": "high heel", "billed cap": "cap",
    "rescue worker’s helmet": "helmet", "gem stone": "diamond", "headphone": "headphones",
    "musical keyboard": "piano keys", "mobile phone": "smartphone", "desktop computer": "computer",
    "optical disk": "cd", "television": "tv", "magnifying glass tilted left": "magnifying glass",
    "closed book": "red book", "dollar banknote": "money", "envelope": "letter", "package": "cardboard box",
    "closed mailbox with raised flag": "mailbox", "pushpin": "pin", "wastebasket": "trash can",
    "carpentry saw": "saw", "couch and lamp": "sofa", "roll of paper": "toilet paper",
    "adhesive bandage": "plaster", "pile of poo": "poop", "alien monster": "space invader",
    "sun with face": "smiling sun", "cloud with lightning": "thunder cloud", "cloud with rain": "rain cloud",
    "sun behind cloud": "sun and cloud", "eggplant": "aubergine", "leafy green": "lettuce",
    "hot pepper": "chili pepper", "green salad": "salad", "french fries": "fries", "bread": "loaf of bread",
    "kiwi fruit": "kiwi", "grinning face": "happy face", "frowning face": "sad face",
    "slightly smiling face": "smile", "smiling face with heart-eyes": "face in love",
    "smiling face with horns": "purple devil face", "smiling face with halo": "angel face",
    "face with tears of joy": "laughing face", "smiling face with sunglasses": "cool face",
    "hot face": "red sweating face", "cold face": "blue frozen face", "red heart": "heart",
    "globe showing Americas": "planet earth", "spiral shell": "sea shell", "pool 8 ball": "billiard ball",
    "water pistol": "water gun", "vertical traffic light": "traffic light", "ring buoy": "life ring",
    "woman’s hat": "straw hat", "headstone": "gravestone", "moai": "stone head", "airplane": "plane",
    "ticket": "cinema ticket", "locked with pen": "padlock with a pen",
    "locked with key": "padlock with a key", "dizzy": "dizzy star",
}  # fmt: skip

# Tags that say little of the picture, and so are not put into a caption.
DULL_TAGS = _names(
    """
    person | hand | fantasy | 143 | ily | tale | fairytale | emotion | ornithology | open | restaurant
    | clothes | comic | bar | up | zodiac | omg | gesture | good | whatever | feels | communication
    | romance | mad | excited | education | note | lady | index | no | not | bro | you | date | xoxo | tear
    | raised | flirt | love | man | woman | adult | eye | accessibility | dead
    """
)

# Said without an article: substances, pairs, proper names, phrases. Plurals in s need no entry.
BARE = _names(
    """
    bacon | flatbread | stuffed flatbread | butter | salt | popcorn | garlic | cooked rice | curry rice
    | spaghetti | sushi | oden | sake | shaved ice | canned food | pouring liquid | mate | ice | fondue
    | falafel | candy | chocolate | cheese | meat | milk | honey | corn | custard | pudding | money
    | toilet paper | wood | coral | yarn | thread | soap | nail polish | broccoli | beer | soda | dice | dna
    | bread | baguette bread | tennis | bowling | ping pong | badminton | ice hockey | field hockey
    | lacrosse | cricket game | lettuce | high voltage | fire | milky way | mount fuji | Tokyo tower
    | Statue of Liberty | Santa Claus | Mrs. Claus | camping | saturn | fork and knife
    | fork and knife with plate | rolling on the floor laughing | dashing away | ZZZ | hammer and pick
    | foggy | hammer and wrench | money with wings | people with bunny ears | people wrestling | cooking
    | locked | unlocked | locked with pen | locked with key | horse racing | performing arts | construction
    | planet earth | leafy green | star-struck | fried shrimp | luggage | fog | meat on bone
    | palms up together | dizzy | skis
    """
)
