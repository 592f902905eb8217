"""Word lists of the prompt style `rich`.

No entry names a class of COCO or VOC, a plural or a synonym (tests/test_prompt_styles.py checks this), and the places
usually show no other object of these classes, because an object that the prompt does not name would be background in
the masks. Changing a list changes the bytes of datasets, so it requires a new recipe format.
"""

OPENINGS = (
    "a photograph of",
    "a photo of",
    "a detailed photograph of",
    "a close-up photograph of",
    "a wide-angle photograph of",
    "a candid photograph of",
    "an amateur photograph of",
    "a professional photograph of",
    "a documentary photograph of",
    "a high-resolution photograph of",
)

ATTRIBUTES = {
    "thing": (
        "small", "large", "old", "new", "red", "blue", "green", "yellow", "white", "black", "grey", "brown", "shiny",
        "worn", "dusty", "colourful", "wet", "plain",
    ),
    "animal": (
        "small", "large", "young", "old", "brown", "black", "white", "grey", "sleeping", "resting", "standing", "wet",
        "curious", "playful",
    ),
    "person": ("young", "old", "tall", "smiling", "standing", "sitting", "resting", "walking", "laughing"),
    "food": ("small", "large", "fresh", "delicious", "half-eaten", "home-made", "partly eaten", "appetising"),
    "other": ("small", "large", "beautiful", "typical", "single", "remarkable"),
}  # fmt: skip
"""Adjectives by kind of class; classes that are not in COCO are `other`."""

COUNTS = ("two", "three", "four", "several", "a pair of", "a group of", "a row of")
"""Words in front of a plural."""

RELATIONS = ("and", "next to", "in front of", "behind", "beside", "together with", "close to")
"""Words between two objects."""

PLACES = {
    "outdoors": (
        "in a meadow", "on a lawn", "in tall grass", "in deep snow", "on a sandy beach", "on wet sand",
        "in a forest clearing", "on a forest path", "on a gravel path", "on a dirt road", "on cobblestones",
        "in a narrow alley", "in a quiet courtyard", "in a village square", "on a mountain slope", "on a rocky shore",
        "in a desert", "beside a river", "at the edge of a lake", "beside a wooden fence", "in front of a brick wall",
        "in front of a stone wall", "under a stone arch", "on a wooden bridge", "on a concrete floor",
        "in autumn leaves",
        "on a hill", "beside a hedge", "in front of a white wall", "on dry earth",
    ),
    "indoors": (
        "in an empty room", "in a large hall", "in a hallway", "in a workshop", "in a warehouse", "in an attic",
        "in a cellar", "in a bright studio", "on a wooden floor", "on a tiled floor", "on a stone floor",
        "on a patterned carpet", "on a marble surface", "on a wooden surface", "on a white surface", "near a window",
        "in front of a plain wall", "in front of a dark curtain", "in front of a brick wall", "on a windowsill",
        "in a corner of a room", "on a striped cloth", "on dark fabric", "in a wooden cabin",
    ),
}  # fmt: skip

LIGHT = {
    "outdoors": (
        "at dawn", "at dusk", "at noon", "at night", "in the early morning", "in the late afternoon", "at sunset",
        "in golden evening light", "in low sunlight", "with long shadows",
    ),
    "indoors": (
        "in soft daylight", "in warm artificial light", "in dim light", "in bright light", "in cold neon light",
        "lit from the side", "lit from behind", "by candlelight", "with hard shadows", "in even studio light",
    ),
}  # fmt: skip

WEATHER = (
    "in light rain", "in heavy rain", "in thick fog", "in morning mist", "while snow is falling", "after the rain",
    "under a cloudy sky", "under a clear sky", "in strong wind", "under dark clouds", "in summer", "in autumn",
    "in winter", "in spring",
)  # fmt: skip

VIEWPOINTS = (
    "seen from above", "seen from below", "seen from the side", "seen from behind", "seen from the front",
    "seen from a low angle", "seen from a high angle", "at eye level", "in the foreground", "in the distance",
    "filling the frame", "off centre", "partly out of the frame",
)  # fmt: skip

CAMERA = (
    "shot with a wide-angle lens", "shot with a telephoto lens", "shot with a macro lens", "shot on 35 mm film",
    "with a shallow depth of field", "in sharp focus", "with a blurred background", "with motion blur",
    "with film grain", "taken with a flash", "with strong contrast", "with muted colours", "with vivid colours",
    "slightly overexposed", "slightly underexposed",
)  # fmt: skip
