"""Words and sentence frames of the synthetic customer-service messages.

Plain data, read by `fedpeft.models.synthetic`. A frame is a sentence with {slots}; a slot is
filled from `SLOTS`, or computed there ({order}, {date}, {amount}, ...). Every name, city and
product is a common word chosen by hand for this file; none stands for a real customer.

Changing anything here changes the data set, and so its digest.
"""

from typing import Final

# Intent -> relative frequency.
INTENTS: Final = {
    "delivery_delay": 14,
    "refund": 13,
    "change_address": 9,
    "cancel_order": 11,
    "invoice_copy": 9,
    "login_problem": 11,
    "damaged_item": 11,
    "opening_hours": 7,
    "loyalty_points": 8,
    "speak_to_person": 7,
}

# Channel -> relative frequency for any intent, and factors where an intent prefers a channel.
CHANNELS: Final = {"app": 35, "mail": 25, "phone": 15, "web": 25}
PREFERENCES: Final = {
    ("login_problem", "app"): 2.0,
    ("loyalty_points", "app"): 1.6,
    ("invoice_copy", "mail"): 2.0,
    ("damaged_item", "mail"): 1.5,
    ("opening_hours", "phone"): 2.5,
    ("speak_to_person", "phone"): 2.0,
    ("change_address", "web"): 1.6,
}

SLOTS: Final[dict[str, tuple[str, ...]]] = {
    "name": (
        "Anna", "Ben", "Carla", "David", "Elif", "Fatima", "George", "Hanna", "Igor", "Julia",
        "Kofi", "Lena", "Marco", "Nadia", "Omar", "Paula", "Quentin", "Rosa", "Sven", "Tara",
        "Umar", "Vera", "Wei", "Ximena", "Yusuf", "Zoe",
    ),
    "city": (
        "Lisbon", "Hamburg", "Lyon", "Turin", "Krakow", "Ghent", "Malmo", "Porto", "Graz",
        "Leeds", "Cork", "Utrecht", "Bilbao", "Bergen", "Tampere", "Brno",
    ),
    "street": (
        "Mill Lane", "Station Road", "Garden Street", "Harbour Way", "Church Hill",
        "Market Square", "Oak Avenue", "River Walk", "Castle Street", "Park Row",
    ),
    "product": (
        "kettle", "desk lamp", "backpack", "coffee machine", "winter jacket", "pair of trainers",
        "bookshelf", "headset", "blender", "suitcase", "rug", "monitor", "tent", "office chair",
        "vacuum cleaner", "mirror", "set of plates", "phone case", "keyboard", "bike helmet",
        "toaster", "garden table", "water bottle", "blanket",
    ),
    "place": ("front door", "neighbour", "back garden", "parcel shop", "wrong house", "old flat"),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September",
        "October", "November", "December",
    ),
    "holiday": ("Easter", "Christmas Eve", "New Year", "the bank holiday", "the long weekend"),
    "want": (
        "I would like to", "I want to", "can I", "could you help me", "I need to",
        "is it possible to", "how do I", "is there a way to", "please help me", "I am trying to",
    ),
    "ask": (
        "can you tell me", "I would like to know", "could you check", "do you know", "please say",
        "I was wondering", "could someone tell me",
    ),
    "parcel": ("parcel", "order", "package", "delivery", "{product}", "shipment"),
    "late": (
        "still not here", "late again", "overdue", "nowhere to be seen", "stuck somewhere",
        "not moving according to the tracking",
    ),
    "money": ("money", "{amount}", "payment", "full price", "deposit"),
    "bill": ("invoice", "receipt", "bill", "proof of purchase", "VAT invoice"),
    "account": ("account", "profile", "customer account", "app", "customer portal"),
    "secret": ("password", "login", "code", "PIN", "verification code"),
    "broken": (
        "broken", "cracked", "scratched", "dented", "in pieces", "torn", "faulty", "bent",
        "not working", "damaged",
    ),
    "part": ("handle", "cover", "switch", "left side", "lid", "zip", "corner", "cable"),
    "shop": ("shop", "store", "branch", "pick-up point", "service desk", "showroom"),
    "points": ("points", "bonus points", "loyalty points", "reward points", "stamps"),
    "card": ("loyalty card", "bonus card", "member card", "rewards account"),
    "human": (
        "a person", "a human", "somebody", "an agent", "one of your colleagues", "a real employee",
        "your manager", "someone in your team",
    ),
    "team": ("team", "customer service", "service team", "sir or madam", "support"),
}  # fmt: skip

FRAMES: Final[dict[str, tuple[str, ...]]] = {
    "delivery_delay": (
        "My {parcel} is {late}",
        "Order {order} was promised for {date} and it is {late}",
        "Where is my {parcel}",
        "{ask} when my {parcel} will arrive",
        "The tracking of {order} has not changed since {date}",
        "I have been waiting for my {parcel} for {days} days",
        "The courier did not come on {weekday}, what about my {parcel}",
        "When do you ship the {product}",
        "{ask} where order {order} is at the moment",
        "It said two days, now it is {days} and there is no {product}",
        "Nothing was delivered on {date}",
        "Your driver never showed up in {city}",
        "{want} track my {parcel}",
    ),
    "refund": (
        "{want} get my {money} back",
        "I sent the {product} back on {date} and the {money} has not been returned",
        "When will you refund order {order}",
        "I was charged twice for the {product}",
        "{ask} when the {amount} will be on my bank account again",
        "Please refund {amount} for order {order}",
        "You took {amount} too much from my card",
        "I returned the {product} in {city}, where is my {money}",
        "The return arrived at your place on {date} but my {money} did not come back",
        "I am still waiting for the refund of {amount}",
        "{want} return the {product} and be paid back",
        "My bank shows {amount} for something I sent back",
    ),
    "change_address": (
        "{want} change the address of order {order}",
        "I have moved to {number} {street} in {city}",
        "Please send the {parcel} to {number} {street} instead",
        "My new address is {number} {street}, {city}",
        "The house number on order {order} should be {number}",
        "{want} have the {parcel} sent to {city}",
        "I typed the wrong street, it is {street}",
        "Can the courier bring the {product} to my office in {city}",
        "We are moving on {date}, please update where you deliver",
        "{want} update the delivery address in my {account}",
        "You still have my old address at {street}",
    ),
    "cancel_order": (
        "{want} cancel order {order}",
        "Please cancel my {parcel}",
        "I ordered the {product} by mistake",
        "I do not need the {product} any longer, please stop the order",
        "Please do not ship order {order}",
        "{want} stop the {parcel} before it leaves",
        "I found the {product} cheaper, so I withdraw my order",
        "I ordered two by accident, take one {product} off the order",
        "{ask} whether order {order} can still be cancelled",
        "I changed my mind about the {product}",
        "Cancel everything I ordered on {date}",
    ),
    "invoice_copy": (
        "{want} get a copy of the {bill} for order {order}",
        "Please send me the {bill} from {month}",
        "I need the {bill} for my tax return",
        "My company wants a {bill} with our address on it",
        "There was no {bill} in the box with the {product}",
        "{ask} where I can download the {bill}",
        "I lost the {bill} for the {product}",
        "Please mail the {bill} of {amount} again",
        "The {bill} for {order} has the wrong company name",
        "The accountant is asking for the {bill} of {date}",
        "{want} print the {bill}",
    ),
    "login_problem": (
        "I cannot get into my {account}",
        "My {secret} does not work",
        "{want} reset my {secret}",
        "The {account} says my {secret} is wrong",
        "I never get the {secret} by mail",
        "I forgot my {secret}",
        "My {account} has been locked since {date}",
        "After the update the app throws me out",
        "The sign-in page stays empty",
        "I have a new phone and cannot sign in any more",
        "It keeps asking for a {secret} that I do not have",
        "{want} log in to my {account}",
    ),
    "damaged_item": (
        "The {product} arrived {broken}",
        "The {part} of my {product} is {broken}",
        "I opened the box and the {product} was {broken}",
        "After {days} days the {product} is {broken}",
        "My new {product} came with a {broken} {part}",
        "The {product} from order {order} is {broken}, please replace it",
        "Your courier threw the box, now the {part} is {broken}",
        "Is a {broken} {part} covered by the warranty",
        "The {product} does not turn on",
        "There is a part missing, the {part} of the {product}",
        "{want} exchange a {broken} {product}",
    ),
    "opening_hours": (
        "When do you open on {weekday}",
        "{ask} how long the {shop} in {city} is open",
        "Are you open on {holiday}",
        "Is the {shop} open on {weekday} after {time}",
        "Until when can I come to the {shop} on {weekday}",
        "At what time does the {shop} in {city} close",
        "Do you close over lunch in {city}",
        "{ask} if you are closed on {date}",
        "Can I pick something up at {time} on {weekday}",
        "What are your hours during {holiday}",
    ),
    "loyalty_points": (
        "How many {points} do I have",
        "My {points} for order {order} are missing",
        "{want} pay with my {points}",
        "I lost my {card}",
        "Do my {points} expire in {month}",
        "I bought the {product} but got no {points}",
        "{want} use {number} {points} for a {product}",
        "My {card} shows {number} instead of more {points}",
        "{ask} what {number} {points} are worth",
        "{want} join the members programme",
        "Please move the {points} of my partner to my {card}",
    ),
    "speak_to_person": (
        "{want} talk to {human}",
        "Please put me through to {human}",
        "I do not want to write with a bot",
        "Can {human} call me back at {time}",
        "Give me {human} please",
        "I wish to speak with {human}",
        "This chat does not understand me, connect me with {human}",
        "I want to make a complaint to {human}",
        "Which number can I call",
        "Let {human} ring me on {weekday}",
    ),
}

# Frames that two intents share: the text does not say which one is meant.
AMBIGUOUS: Final[tuple[tuple[tuple[str, str], tuple[str, ...]], ...]] = (
    (
        ("refund", "damaged_item"),
        (
            "The {product} is {broken}, I paid {amount} for it, what do we do now",
            "I am sending the {broken} {product} back",
            "{amount} for a {broken} {product}, please make this right",
        ),
    ),
    (
        ("delivery_delay", "cancel_order"),
        (
            "Order {order} is {late} and I do not want to wait for it",
            "If the {product} is not here by {weekday} I do not need it",
        ),
    ),
    (
        ("change_address", "delivery_delay"),
        (
            "The {parcel} was left at the {place} and not with me",
            "The courier went to the {place} with order {order}",
        ),
    ),
    (
        ("invoice_copy", "login_problem"),
        (
            "I cannot open the {bill} in my {account}",
            "The {account} does not show me the {bill} for {order}",
        ),
    ),
    (
        ("loyalty_points", "login_problem"),
        (
            "Since the update my {account} shows no {points}",
            "The {secret} of my {card} is not accepted",
        ),
    ),
    (
        ("refund", "cancel_order"),
        (
            "I do not want the {product} any more, what happens with the {money}",
            "Please take back order {order}",
        ),
    ),
    (
        ("opening_hours", "speak_to_person"),
        (
            "At what time can I reach {human} in {city}",
            "Will {human} be at the {shop} on {weekday}",
        ),
    ),
    (
        ("speak_to_person", "delivery_delay"),
        (
            "Nobody answers me about order {order}",
            "Who can tell me something about the {parcel}",
        ),
    ),
    (
        ("refund", "invoice_copy"),
        (
            "The amount on the {bill} is wrong, it should be {amount}",
            "The {bill} says {amount}, but I paid another price",
        ),
    ),
)

# Sentences of context that any message may carry, so that single words mislead.
CONTEXT: Final = (
    "I ordered the {product} on {date}",
    "The order number is {order}",
    "I have been a customer for {days} years",
    "I paid {amount} by card",
    "The {product} was a present for {name}",
    "I already looked in the app",
    "I was at your {shop} in {city} on {weekday}",
    "I called on {weekday} and nobody answered",
    "The last delivery was fine",
    "I live in {city}",
    "The invoice says {amount}",
    "I have a {card} too",
    "My {account} shows the order as sent",
    "The courier was friendly, by the way",
    "It was not cheap",
    "I logged in twice to check",
    "I do not want to cancel anything",
    "The address on the box was right",
    "I leave for {city} on {date}",
    "My neighbour {name} had the same thing",
    "I would rather not have to return it",
    "Your colleague {name} told me to write to you",
)

OPENERS: Final = {
    "app": ("hi", "hey", "hello", "hello there", "good evening"),
    "mail": ("Dear {team},", "Hello,", "Good morning,", "Dear {name},", "To whom it may concern,"),
    "phone": ("yes hello", "good morning", "hi this is {name}", "my name is {name} and", "hello"),
    "web": ("Hi,", "Hello,", "Hello {team},", "Question:", "Good afternoon,"),
}
CLOSERS: Final = {
    "app": ("thx", "please hurry", "any idea?", "thanks", "what now?"),
    "mail": ("Kind regards, {name}", "Best wishes, {name}", "Many thanks, {name}", "Yours, {name}"),
    "phone": ("thank you", "yeah", "that is all", "what can you do", "thanks bye"),
    "web": ("Thank you.", "Thanks in advance.", "Please answer soon.", "Best, {name}"),
}
FILLERS: Final = ("um", "uh", "well", "you know", "like", "so")
SHORTHAND: Final = {
    "please": "pls", "you": "u", "your": "ur", "are": "r", "because": "bc", "for": "4",
    "thanks": "thx", "and": "n", "message": "msg", "tomorrow": "tmrw", "cannot": "cant",
}  # fmt: skip
