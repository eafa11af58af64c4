"""A small intent-classification corpus, written by a grammar of our own.

The quickstart needs sentences with labels and nothing to download. Each intent has three
paragraphs of phrasings, one per split, and the mark that ends a phrasing tells its mood:
``!`` an order, ``?`` a question, ``.`` a statement. A row of the corpus is one phrasing, with its
``{slots}`` filled, inside one of the frames that fit its mood ("could you please ...").

The phrasings of validation and test differ from those of training in verb or idiom, and sibling
intents share their nouns ("cancel the trip", "what does cancelling the trip cost"). So word counts
alone do not carry far, while a pretrained encoder generalises.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

OUT_OF_SCOPE: Final = "oos"


class Phrasings(NamedTuple):
    """The phrasings of one intent: a paragraph of sentences for each split."""

    train: str
    val: str
    test: str


SLOTS: Final[Mapping[str, Sequence[str]]] = {
    "account": ("savings", "checking", "joint", "holiday"),
    "amount": (
        *("40 dollars", "250 dollars", "sixty euros", "300 pounds", "ninety dollars"),
        *("1200 euros", "75 dollars", "five hundred pounds", "20 euros", "eighty pounds"),
    ),
    "animal": ("penguins", "otters", "owls", "honey bees", "llamas", "whales", "hedgehogs"),
    "bag": ("suitcase", "backpack", "duffel bag", "travel bag", "ski bag", "trolley case"),
    "card": ("debit card", "credit card", "Visa card", "bank card", "Mastercard"),
    "city": (
        *("Lisbon", "Oslo", "Denver", "Vienna", "Montreal", "Seville"),
        *("Glasgow", "Nairobi", "Osaka", "Dublin", "Chicago", "Warsaw"),
    ),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "device": ("phone", "laptop", "tablet", "smartwatch", "notebook", "work phone"),
    "doctor": ("doctor", "dentist", "dermatologist", "physiotherapist", "cardiologist"),
    "feeling": ("dizzy", "drowsy", "nauseous", "shaky", "itchy", "weak", "tired"),
    "language": ("Finnish", "Swahili", "Korean", "Portuguese", "Greek", "Welsh"),
    "meal": (
        *("lasagna", "pad thai", "chicken curry", "mushroom risotto", "lentil soup"),
        *("ramen", "paella", "fried rice", "beef stew", "moussaka"),
    ),
    "med": ("ibuprofen", "amoxicillin", "metformin", "cetirizine", "omeprazole", "aspirin"),
    "number": ("two", "three", "four", "five"),
    "person": (
        *("Anna", "my brother", "my landlord", "Marcus", "my sister", "Priya"),
        *("my roommate", "Tom", "my mother", "Elena", "my cousin"),
    ),
    "place": (
        *("the corner bistro", "the noodle bar", "the curry house", "the new deli"),
        *("the station diner", "the harbour grill"),
    ),
    "planet": ("Mars", "Jupiter", "Saturn", "Venus", "Neptune"),
    "room": (
        *("kitchen", "bedroom", "guest room", "living room", "study"),
        *("attic", "playroom", "nursery", "basement", "dining room"),
    ),
    "sport": ("tennis", "chess", "rugby", "badminton", "curling"),
    "team": (
        *("the design team", "Marcus", "my manager", "the new client"),
        *("the sales team", "Priya", "the legal department", "the auditor"),
    ),
    "time": (
        *("half past seven", "5:45", "quarter to eight", "six thirty"),
        *("8:15", "ten to nine", "9 o'clock", "twenty past six"),
    ),
    "trip": ("flight", "hotel room", "train ticket", "rental car", "tour"),
}

FRAMES: Final[Mapping[str, Sequence[str]]] = {
    "!": (
        *("{}", "{}", "{}", "please {}", "{} please", "{}, thanks", "hey, {}", "ok, {}"),
        *("can you {}", "could you please {}", "would you {}", "i need you to {}"),
        *("i'd like you to {}", "go ahead and {}", "just {}", "hi, please {}"),
    ),
    "?": (
        *("{}", "{}", "{}", "hey, {}", "hi, {}", "quick question, {}", "sorry, {}"),
        *("just wondering, {}", "tell me, {}", "one thing, {}", "ok, {}", "so {}"),
    ),
    ".": (
        *("{}", "{}", "{}", "hi, {}", "hey, {}", "so {}", "well, {}", "um, {}", "ok so {}"),
        *("hello, {}", "right, {}", "oh, {}", "listen, {}", "actually, {}"),
    ),
}

INTENTS: Final[Mapping[str, Mapping[str, Phrasings]]] = {
    "banking": {
        "make_transfer": Phrasings(
            train="""send {amount} to {person}! transfer {amount} from my {account} account to
            {person}! move {amount} from savings into checking! i want to transfer {amount} to
            {person}. can i send {person} {amount} from here? make a transfer of {amount} to
            {person}! i have to move {amount} into my {account} account. pay {person} {amount} out
            of my {account} account! i'd like {amount} transferred to my {account} account.""",
            val="""wire {person} {amount} by {day}! shift {amount} over to my {account} account! i
            owe {person} {amount} for dinner and want to settle that. would it be possible to get
            {amount} across to {person} today?""",
            test="""{person} should get {amount} from me. put {amount} of my pay into the {account}
            pot! i need to reimburse {person} for the tickets, it was {amount}. drop {amount} into
            {person}'s account! top up my {account} account with {amount}! let {person} have
            {amount} from my {account} account!""",
        ),
        "transfer_status": Phrasings(
            train="""did the {amount} i sent to {person} arrive? has my transfer to {person} gone
            through? where is the money i sent to {person}? check if my transfer of {amount} has
            arrived! i want to know whether {person} got my transfer. my transfer of {amount} still
            hasn't arrived. how long until the transfer to my {account} account arrives? is my
            transfer to {person} still pending? i sent {person} {amount} on {day} and it's still not
            there.""",
            val="""{person} says the {amount} never landed. was the payment to {person} completed? i
            moved {amount} on {day} and my {account} balance looks the same. see whether the wire
            from {day} has cleared!""",
            test="""{person} keeps asking me what became of the {amount}. why is {person} still
            waiting for the {amount} i paid on {day}? the {amount} left my account but nothing has
            turned up on the other side. has {person} received what i wired? i'm wondering if my
            payment from {day} made it to {person}. find out what happened to the {amount} i put
            into my {account} account!""",
        ),
        "freeze_card": Phrasings(
            train="""freeze my {card}! block my {card} right away! i lost my {card} on {day}.
            someone stole my {card} in {city}. my {card} is missing, so block it. lock my {card} so
            nobody can use it! i haven't been able to find my {card} since {day}. put a freeze on my
            {card}! can i have my {card} blocked?""",
            val="""my wallet with the {card} in it is gone. disable my {card} before anyone pays
            with it! stop all payments on my {card}! i left my {card} in a taxi in {city}.""",
            test="""a pickpocket in {city} took my {card}. make sure my {card} can't be charged any
            more! i dropped my {card} somewhere in {city}. suspend my {card} until i know where it
            is! my {card} isn't in my bag and i'm worried somebody has it. there are payments on my
            {card} that aren't mine, so switch it off.""",
        ),
        "unfreeze_card": Phrasings(
            train="""unfreeze my {card}! unblock my {card}! i found my {card}, so unlock it. take
            the freeze off my {card}! my {card} is blocked and i want to use it again. remove the
            block on my {card}! can i have my {card} unblocked? i froze my {card} on {day} but i
            found it again. my {card} wasn't stolen after all, so lift the block.""",
            val="""my {card} turned up in a coat pocket, so make it usable again. reactivate my
            {card}! let me pay with my {card} again! the {card} i reported as missing was in my car
            the whole time.""",
            test="""you can switch my {card} back on. i have my {card} back, so allow payments
            again. nobody took my {card}, it was under the sofa. enable my {card} again! false
            alarm, my {card} was at home in {city} all along. end the suspension of my {card}!""",
        ),
    },
    "travel": {
        "cancel_booking": Phrasings(
            train="""cancel my {city} {trip}! i want to cancel my {trip} for {day}. cancel the
            {city} {trip} i booked for {day}! i need to cancel my booking for the {city} {trip}. my
            plans changed, so cancel the {city} {trip}. i don't want the {city} {trip} any more, so
            cancel it. i'm not going to {city} on {day}, so cancel my {trip}. drop my booking for
            the {city} {trip}! i'd like my {city} booking cancelled.""",
            val="""call off my {city} {trip}! i can't travel on {day}, so get rid of the {trip}.
            undo my reservation for the {city} {trip}! i won't be needing the {city} {trip}.""",
            test="""scrap the {city} {trip}! the journey to {city} is off, so release my
            reservation. i no longer need the {trip} i reserved for {day}. i'm staying home, so give
            up my {city} {trip}. delete the reservation for my {city} {trip}! i've decided against
            {city}, so let the {trip} go.""",
        ),
        "cancellation_policy": Phrasings(
            train="""can i cancel my {city} {trip} for free? what is the cancellation policy for my
            {city} {trip}? what happens if i cancel my {city} {trip}? how much does it cost to
            cancel a {trip}? do i get my money back if i cancel the {city} {trip}? until when can i
            cancel my {trip} without a fee? is there a fee if i cancel the {trip} on {day}? explain
            the rules for cancelling a {trip}! i'm not cancelling the {trip} yet, i just want to
            know what it would cost.""",
            val="""would i lose the full price if i don't take the {city} {trip}? is the {city}
            {trip} refundable? how late can i still back out of the {city} {trip}? tell me what the
            penalty is for dropping a {trip}!""",
            test="""suppose i don't go to {city}, would i still be charged for the {trip}? are there
            charges for calling off a {trip}? how many days before can i pull out of the {city}
            {trip} booking? if something comes up in {city}, do i get a refund on the {trip}? i'd
            like to hear the terms before i decide whether to give up my {city} {trip}. what would
            it cost me to scrap the {trip} on {day}?""",
        ),
        "lost_luggage": Phrasings(
            train="""my {bag} never arrived in {city}. the airline lost my {bag}. my {bag} didn't
            come out on the belt in {city}. i want to report a lost {bag}. my {bag} wasn't on the
            flight to {city}. my {bag} is still missing after the flight to {city}. find my lost
            {bag}! who do i call about a missing {bag}? where is the {bag} i checked in on
            {day}?""",
            val="""everyone else at baggage claim in {city} has their things except me. track down
            the {bag} i checked in at {city}! my {bag} seems to have stayed behind in {city}. it's
            been {number} days since i landed and i still have no {bag}.""",
            test="""i got to {city} but my {bag} didn't. the carousel in {city} stopped and my {bag}
            wasn't there. i think my {bag} went to {city} without me. nobody at the airport can tell
            me where my {bag} ended up. the {bag} i handed over at the counter in {city} hasn't been
            seen since. trace the {bag} that was supposed to be on the {city} plane!""",
        ),
        "baggage_allowance": Phrasings(
            train="""how many bags can i take on the flight to {city}? what is the weight limit for
            a {bag}? can i bring a {bag} on the flight to {city}? how heavy can my {bag} be? is a
            {bag} included in my ticket to {city}? do i have to pay extra for a {bag}? tell me the
            baggage allowance for the flight to {city}! i want to know how much luggage i can check
            in on the way to {city}. what size of {bag} is allowed in the cabin?""",
            val="""will they charge me if my {bag} is too heavy? am i permitted {number} cases on
            the {city} plane? does a {bag} count as carry-on? my {bag} weighs 25 kilos, is that
            ok?""",
            test="""is there a maximum number of kilos for the {city} plane? would my {bag} fit in
            the overhead bin? i'm wondering if i may board with a {bag} and a guitar. how big may a
            {bag} be before it goes in the hold? check whether i get a second {bag} without a
            surcharge! does my fare to {city} cover a {bag}?""",
        ),
    },
    "smart_home": {
        "lights_on": Phrasings(
            train="""turn on the lights in the {room}! switch the {room} light on! turn the {room}
            lights on at {time}! i want the lights on in the {room}. light up the {room}! it's too
            dark in the {room}. put the {room} light on! turn on the lamp in the {room}! can i have
            some light in the {room}?""",
            val="""i can't see a thing in the {room}. make the {room} bright! it's pitch black in
            the {room}. i'd like to read in the {room} but it's so dim.""",
            test="""i keep bumping into things in the {room} because it's so gloomy. brighten the
            {room} up! the {room} could do with some illumination. i'm going into the {room} and
            don't want to stand in the dark. get rid of the darkness in the {room}! the {room}
            should be lit when we get home at {time}.""",
        ),
        "lights_off": Phrasings(
            train="""turn off the lights in the {room}! switch the {room} light off! turn the {room}
            lights off at {time}! i want the lights off in the {room}. it's too bright in the
            {room}. put out the light in the {room}! turn off the lamp in the {room}! the light in
            the {room} is still on, so turn it off. nobody is in the {room}, so switch the light
            off.""",
            val="""make the {room} dark! i left the {room} light burning. kill the lights in the
            {room}! i can't sleep with the {room} lit up like this.""",
            test="""the {room} doesn't need to be lit any more. we forgot about the lamp in the
            {room} and it's wasting power. everyone has left the {room}, so there's no need for
            light. i'd rather sit in the dark in the {room}. black out the {room}! the lamp in the
            {room} is hurting my eyes.""",
        ),
        "heating_up": Phrasings(
            train="""turn up the heating in the {room}! make it warmer in the {room}! it's too cold
            in the {room}. raise the temperature in the {room}! turn the heat up by {number} degrees
            in the {room}! i want the {room} warmer. set the {room} {number} degrees higher! i'm
            cold in the {room}. increase the heat in the {room}!""",
            val="""i'm freezing in the {room}. the {room} feels like a fridge. bump the thermostat
            up {number} degrees in the {room}! my feet are like ice in the {room}.""",
            test="""i'm shivering in the {room}. take the chill off the {room} before i get home!
            the {room} is frosty tonight. we need a blanket to sit in the {room}. give us {number}
            more degrees in the {room}! everyone in the {room} is wearing a coat indoors.""",
        ),
        "heating_down": Phrasings(
            train="""turn down the heating in the {room}! make it cooler in the {room}! it's too
            warm in the {room}. it's too hot in the {room}. lower the temperature in the {room}!
            turn the heat down by {number} degrees in the {room}! i want the {room} cooler. set the
            {room} {number} degrees lower! reduce the heat in the {room}!""",
            val="""i'm sweating in the {room}. the {room} feels like an oven. knock the thermostat
            down {number} degrees in the {room}! we're melting in the {room}.""",
            test="""the {room} is like a sauna. it's boiling in the {room}. cool the {room} off
            before i go to bed! i'm roasting in the {room} even in a t-shirt. take {number} degrees
            off in the {room}! the radiator in the {room} doesn't have to work that hard.""",
        ),
    },
    "calendar": {
        "set_alarm": Phrasings(
            train="""set an alarm for {time}! wake me up at {time} on {day}! set my alarm for {time}
            on {day}! i need an alarm at {time}. i have to be up at {time} on {day}. create an alarm
            for {day} at {time}! can i get a wake-up call at {time}? make the alarm ring at {time}!
            i want the alarm to go off at {time}.""",
            val="""get me out of bed at {time}! don't let me sleep past {time} on {day}. make a
            noise at {time} so i don't oversleep! i can't be late on {day}, so ring at {time}.""",
            test="""i have to catch a bus on {day}, so get me up by {time}. rouse me at {time} on
            {day}! i must not sleep in on {day}, so buzz me at {time}. make sure i'm awake by
            {time}! beep at {time} on {day}! i'd like to be woken at {time}.""",
        ),
        "cancel_alarm": Phrasings(
            train="""turn off my alarm for {time}! cancel the {time} alarm! delete the alarm for
            {day}! i don't need the alarm at {time} any more. stop the alarm! remove my alarm for
            {time} on {day}! i don't want the alarm to go off at {time}. switch the alarm off for
            {day}! don't wake me up at {time} on {day}.""",
            val="""let me sleep in on {day}! i'm off on {day}, so there's no need to ring. get rid
            of the {time} alarm! i'm already up, so skip the {time} alarm.""",
            test="""there's no need to get me up at {time} on {day}. i'd rather stay in bed on {day}
            than be woken at {time}. forget about rousing me at {time}! i'm on holiday, so scrap the
            beeping at {time}. the {time} wake-up is no longer necessary. make sure nothing rings at
            {time} on {day}!""",
        ),
        "check_alarm": Phrasings(
            train="""what time is my alarm set for on {day}? when does my alarm go off on {day}? is
            there an alarm set for {time}? did i set an alarm for {day}? show me my alarms for
            {day}! do i have an alarm at {time}? tell me when the alarm is going to ring on {day}! i
            forgot whether i set an alarm for {time}. is my alarm for {time} on or off?""",
            val="""when will you wake me up on {day}? at what hour do i get woken on {day}? list
            every wake-up i have before {day}! i can't remember what time i asked to be woken on
            {day}.""",
            test="""are you going to get me up at {time} on {day}? how long can i sleep until it
            rings on {day}? will anything beep at {time}? i'm not sure i told you to wake me on
            {day}. which wake-up times did i give you for {day}? confirm that i'm being woken at
            {time}!""",
        ),
        "schedule_meeting": Phrasings(
            train="""schedule a meeting with {team} on {day}! set up a meeting with {team} at
            {time}! book a meeting with {team} for {day}! i want to meet {team} on {day} at {time}.
            put a meeting with {team} in my calendar for {day}! invite {team} to a meeting on {day}!
            can we arrange a meeting with {team} for {day}? i need a meeting with {team} at {time}.
            add a call with {team} to my calendar on {day}!""",
            val="""get {team} in a room with me on {day}! {team} and i should sit down together on
            {day}. find a slot on {day} to talk things over with {team}! pencil in {team} for {day}
            at {time}!""",
            test="""i'd like to catch up with {team} on {day}, so reserve an hour. block {time} on
            {day} for a chat with {team}! organise a get-together with {team} on {day}! {team} wants
            to see me on {day}, so make time for that. line up a conversation with {team} for {day}!
            send {team} an invitation for {day} at {time}!""",
        ),
        "decline_meeting": Phrasings(
            train="""cancel my meeting with {team} on {day}! i can't make the meeting with {team} on
            {day}. decline the meeting with {team}! tell {team} i can't come to the meeting on
            {day}! remove the meeting with {team} from my calendar! i won't be at the meeting with
            {team}. say no to the {day} invitation from {team}! i want to skip the call with {team}
            on {day}. take me off the {day} meeting with {team}!""",
            val="""let {team} know i'm unavailable on {day}! get me out of the {day} call with
            {team}! {team} will have to talk without me on {day}. the {day} chat with {team} isn't
            happening.""",
            test="""send my apologies to {team} for {day}! i'm too busy to see {team} on {day}.
            something came up, so {team} shouldn't expect me on {day}. clear {team} off my schedule
            for {day}! i have to back out of sitting down with {team} on {day}. turn down what
            {team} proposed for {day}!""",
        ),
    },
    "food": {
        "order_food": Phrasings(
            train="""order {meal} from {place}! i want to order {meal} for delivery. get me {meal}
            from {place}! can i order {meal} from {place}? place an order for {meal} at {place}! i'd
            like some {meal} delivered. have {meal} delivered to my home at {time}! add {meal} to my
            order from {place}! i'm hungry, so order some {meal}.""",
            val="""i'm craving {meal} from {place}. get {place} to bring me some {meal}! i could go
            for takeout {meal} tonight. we'll have {meal} from {place}, sent to the house.""",
            test="""i don't feel like cooking, so let {place} send us {meal}. {meal} from {place}
            would hit the spot right now. buy us takeaway {meal} for {time}! there's nothing in the
            fridge, so have someone bring {meal}. ask {place} for {meal} to go! i fancy {meal} from
            {place} for dinner.""",
        ),
        "delivery_status": Phrasings(
            train="""where is my order from {place}? when will my {meal} be delivered? how long
            until my order from {place} arrives? my {meal} still hasn't arrived. track my order from
            {place}! i ordered {meal} an hour ago and it's still not here. is my delivery from
            {place} on its way? has {place} sent my {meal} yet? check the status of my {meal}
            order!""",
            val="""what's keeping my {meal}? {place} promised {time} and nobody has shown up. is the
            courier with the {meal} close? see how far away my {meal} is!""",
            test="""we've been waiting for {meal} since {time}. has the driver left {place}? i'm
            starving and there's no sign of anyone from {place}. find out why the {meal} is taking
            so long! should i expect a knock on the door soon with my {meal}? did {place} forget
            about us?""",
        ),
        "order_complaint": Phrasings(
            train="""my order from {place} is wrong. i ordered {meal} but got {meal}. they delivered
            the wrong {meal}. {place} sent me the wrong order. the {meal} is missing from my order.
            i want to complain about my order from {place}. my {meal} arrived cold. report a problem
            with my {meal} order! can i get my money back for the {meal} that {place} delivered?""",
            val="""this isn't the {meal} i asked for. {place} forgot to pack the {meal}. the bag
            from {place} came without the {meal}. somebody else's dinner came instead of my
            {meal}.""",
            test="""{place} mixed up my food with someone else's. the {meal} we received is
            inedible. i opened the box and there's no {meal} inside. why did {place} give me {meal}
            when i asked for {meal}? half of what i paid {place} for isn't in the bag. the driver
            brought {meal}, which nobody here chose.""",
        ),
        "recipe": Phrasings(
            train="""how do i make {meal}? give me a recipe for {meal}! i want to cook {meal} for
            {person}. what do i need to make {meal}? find a {meal} recipe! how long do i have to
            cook {meal}? show me how to cook {meal}! what ingredients are in {meal}? i need an easy
            {meal} recipe for {day}.""",
            val="""teach me to prepare {meal}! walk me through {meal} from scratch! what goes into a
            good {meal}? i've never made {meal} and {person} is coming over.""",
            test="""i'd like to have a go at {meal} in my own kitchen. which spices belong in
            {meal}? what's the first step for homemade {meal}? i bought everything for {meal} but
            don't know where to start. do i fry the onions first for {meal}? explain how {meal} is
            done the traditional way!""",
        ),
    },
    "support": {
        "battery_drain": Phrasings(
            train="""my {device} battery drains too fast. the battery of my {device} doesn't last.
            why does my {device} run out of battery so quickly? my {device} battery is empty by
            {time}. how can i make my {device} battery last longer? my {device} battery only lasts
            {number} hours. i have to charge my {device} all the time. the battery of my {device}
            dies after {number} hours. fix the battery drain on my {device}!""",
            val="""my {device} won't get through the day. a full charge on my {device} is gone by
            {time}. what is eating all the power on my {device}? i carry a power bank because my
            {device} never makes it to the evening.""",
            test="""my {device} goes from full to nothing in {number} hours. my {device} is always
            dead by {time} although it was full at breakfast. help my {device} keep its juice for
            longer! why is my {device} back in the red {number} hours after i unplug it? my {device}
            loses power even when i'm not using it. it used to hold for days but now my {device}
            barely survives the morning.""",
        ),
        "charging_problem": Phrasings(
            train="""my {device} doesn't charge. my {device} won't charge any more. why isn't my
            {device} charging? i plug in the {device} but the battery stays empty. the charger of my
            {device} doesn't work. my {device} stopped charging on {day}. my {device} is plugged in
            but it's not charging. how do i fix a {device} that won't charge? my {device} battery
            stays at {number} percent when i plug it in.""",
            val="""nothing happens when i put the cable into my {device}. my {device} takes no power
            from the wall. the {device} has been on the cable since {time} and is still dead. the
            power port of my {device} seems to be broken.""",
            test="""i connect my {device} to the outlet and the screen stays black. my {device}
            ignores every cable i try. get my {device} to accept power again! after a whole night on
            the plug my {device} is no fuller than before. does the socket on my {device} need
            cleaning if it takes no current? the little lightning symbol doesn't show up when i plug
            in my {device}.""",
        ),
        "no_internet": Phrasings(
            train="""my internet is down. i have no internet in the {room}. the wifi doesn't work on
            my {device}. my {device} can't connect to the internet. why is there no wifi in the
            {room}? the internet has been down since {time}. my {device} doesn't find the wifi any
            more. i lost my internet connection on {day}. is the internet down in {city}?""",
            val="""we've been offline since {time}. my {device} says there's no network. not a
            single page opens on my {device}. get my {device} back online!""",
            test="""the router in the {room} is blinking red and nothing loads. my {device} shows no
            bars from the router in the {room}. we've been cut off from the web since {day}. is
            there a network outage in {city} today? the whole house has had no web access since
            {time}. my {device} refuses to join the network.""",
        ),
        "slow_internet": Phrasings(
            train="""my internet is slow. the wifi in the {room} is slow. why is the internet on my
            {device} so slow? it takes ages to load a page on my {device}. my internet has been slow
            since {day}. speed up the wifi in the {room}! the connection on my {device} is very slow
            after {time}. videos keep buffering on my {device}. how can i get faster wifi in the
            {room}?""",
            val="""pages crawl on my {device}. downloads on my {device} take forever. i pay for fast
            fibre and get a trickle in the {room}. my video calls freeze in the {room} every
            {day}.""",
            test="""my {device} needs a full minute to open one page. the picture stutters whenever
            i stream in the {room}. why does my {device} only get a fraction of the bandwidth i pay
            for? everything online drags after {time}. my {device} is online but painfully sluggish.
            make films load quicker in the {room}!""",
        ),
    },
    "health": {
        "doctor_appointment": Phrasings(
            train="""book an appointment with my {doctor}! i need to see a {doctor} on {day}. make
            an appointment with the {doctor} for {day}! can i get an appointment with the {doctor}
            at {time}? schedule a checkup with my {doctor}! i want to see my {doctor} about an old
            problem. when can the {doctor} see me? get me an appointment with the {doctor} for
            {day}! is there a free appointment with a {doctor} on {day}?""",
            val="""sign me up for a consultation with the {doctor}! i'd like the {doctor} to take a
            look at me on {day}. does the {doctor} have an opening on {day}? my shoulder has hurt
            for {number} weeks and somebody should examine it.""",
            test="""squeeze me in with the {doctor} on {day}! it's time for my yearly visit to the
            {doctor}. there's something i'd like a {doctor} to check before {day}. could the
            {doctor} fit me in before {day}? find me a {doctor} who has time on {day}! reserve a
            visit to the {doctor} for my daughter!""",
        ),
        "refill_prescription": Phrasings(
            train="""refill my prescription for {med}! i need more {med}. i ran out of {med} on
            {day}. order a refill of my {med}! can i get my {med} prescription renewed? i need a new
            prescription for {med}. my {med} will run out on {day}. renew my {med} prescription! ask
            the pharmacy to refill my {med} by {day}!""",
            val="""i took my last {med} on {day}. get the pharmacy to prepare another pack of {med}!
            my {med} bottle is empty. extend my {med} for another {number} months!""",
            test="""there are only {number} tablets of {med} left. i'm down to my final strip of
            {med}. have my doctor write me another slip for {med}! stock me up on {med} before
            {day}! the box of {med} is used up. could i collect a fresh supply of {med} on
            {day}?""",
        ),
        "dosage_question": Phrasings(
            train="""how much {med} should i take? how often can i take {med}? can i take {number}
            tablets of {med} at once? what is the right dose of {med}? should i take {med} before or
            after meals? how many hours should i wait between doses of {med}? tell me the daily dose
            of {med}! what is the maximum dose of {med} per day? i want to know when to take my
            {med}.""",
            val="""am i supposed to swallow {med} with food? i missed my {med} at {time}, should i
            double up? is one {med} a day enough? how many milligrams of {med} are safe for a
            child?""",
            test="""is it ok to have a second {med} {number} hours later? at what intervals do i use
            {med}? i forgot what the label of {med} says about the quantity. is {med} meant for the
            morning or the evening? would {number} pills of {med} be too many? explain how {med} has
            to be taken!""",
        ),
        "side_effects": Phrasings(
            train="""i feel {feeling} after taking {med}. what are the side effects of {med}? can
            {med} make me {feeling}? is it normal to feel {feeling} with {med}? i took {med} and now
            i feel {feeling}. does {med} have side effects? since i started {med} i feel {feeling}
            all day. i get a headache when i take {med}. tell me about the side effects of
            {med}!""",
            val="""{med} doesn't agree with me. {med} has left me {feeling} since {day}. could my
            rash come from {med}? how bad are the unwanted effects of {med}?""",
            test="""i've been {feeling} ever since my doctor put me on {med}. is {med} to blame for
            me being {feeling}? i don't tolerate {med} well. my skin reacts badly to {med}. what
            might {med} do to my body? do people get {feeling} from {med}?""",
        ),
    },
}

NO_INTENT: Final = Phrasings(
    train="""tell me a joke about {animal}! why do {animal} make noises at night? how far away is
    {planet}? what is the weather like in {city}? who won the {sport} final last year? translate
    good morning into {language}! how do you say thank you in {language}? do you believe in free
    will? what is the meaning of life? how many people live in {city}? write a short poem about
    {planet}! i'm bored, so tell me something funny about {animal}. are you a robot or a human? play
    some relaxing music! multiply {number} by nineteen! what should i give {person} as a birthday
    present? i want to learn {language} this year. {person} and i are writing a novel. who invented
    the credit card? what is the history of the airport in {city}? how high is the interest on a
    {account} account? open a new {account} account for {person}! which colour should i paint the
    {room}? vacuum the {room}! who founded {place}? which wine goes with {meal}? how many calories
    are in {meal}? which {device} should i buy? when was {med} discovered? what does a {doctor}
    earn? how do planes stay in the air? what is a good museum in {city}? do i need a visa to visit
    {city}? how much does a new {device} cost? what day of the week is christmas?""",
    val="""what sound do {animal} make? is there life on {planet}? explain the rules of {sport}! is
    {language} hard to learn? who painted the ceiling of the sistine chapel? recommend a crime novel
    set in {city}! do you ever get lonely? why is the sky blue? which concerts are on in {city} on
    {day}? give me {number} tips for playing the cello! i've always wondered what {planet} looks
    like up close. what is my credit score? which bank has the most branches in {city}? is {city}
    safe at night? water the plants in the {room}! where was {meal} invented? which {device} has the
    best screen? how is {med} made? how long does it take to become a {doctor}? what time is it in
    {city}?""",
    test="""what do {animal} eat in winter? how many moons does {planet} have? count to ten in
    {language}! who holds the record in {sport}? make up a bedtime story about {animal}! what's your
    favourite colour? what caused the french revolution? how do i tie a bow tie? sing me a song
    about {city}! who is the mayor of {city}? can {animal} swim? what's the difference between a
    simile and a metaphor? i had an argument with {person} and feel sad. how do magnets work? what
    happened in the news on {day}? tell me a fun fact about {planet}! did the home team win the
    {sport} match on {day}? how many letters are in the {language} alphabet? i need a gift idea for
    {person}. flip a coin! i think {animal} are the smartest creatures. how are bank notes printed?
    raise the limit on my {card}! what is the pin of my {card}? how much money is in my {account}
    account? which part of {city} has the nicest cafes? how long is the drive to {city}? what
    language do they speak in {city}? sell my old {device}! how do i take a screenshot with my
    {device}? the screen of my {device} is cracked. lock the window in the {room}! how big is the
    {room}? is {place} open on {day}? does {place} have vegan dishes? leave a good review for
    {place}! which company makes {med}? how does a heart valve work? is {day} a public holiday? what
    is on my shopping list? pair my {device} with the headphones! who designed the first light bulb?
    how does a thermostat work? why do airlines overbook flights? hire a guide in {city}!""",
)

DOMAINS: Final[Mapping[str, str]] = {intent: domain for domain, intents in INTENTS.items() for intent in intents}

_TIDY_EVERY = 8  # one row in so many has capitals and its final mark
_MAX_MISSES = 500  # repeats in a row after which a grammar counts as used up


def _pick(rng: random.Random, options: Sequence[str]) -> str:
    # Only Random.random() promises the same numbers on every Python version.
    return options[int(rng.random() * len(options))]


def _phrasings(paragraph: str) -> list[str]:
    """Split a paragraph into its phrasings, each with the mark of its mood at the end."""
    return [" ".join(found.split()) for found in re.findall(r"[^.?!]+[.?!]", paragraph)]


def _fill_slots(rng: random.Random, phrasing: str) -> str:
    """Replace each slot by one of its fillers; a slot named twice gets two different ones."""
    taken: set[str] = set()

    def fill(slot: re.Match[str]) -> str:
        filler = _pick(rng, [option for option in SLOTS[slot[1]] if option not in taken])
        taken.add(filler)
        return filler

    return re.sub(r"\{(\w+)\}", fill, phrasing)


def _sentence(rng: random.Random, phrasing: str) -> str:
    """Write one sentence for a phrasing: slots filled, framed, mostly in lower case."""
    core, mood = _fill_slots(rng, phrasing[:-1]), phrasing[-1]
    text = _pick(rng, FRAMES[mood]).format(core)
    if rng.random() * _TIDY_EVERY >= 1:
        return text.lower()
    text = re.sub(r"\bi\b", "I", text)
    asks = mood == "?" or text.startswith(("can ", "could ", "would "))
    return text[0].upper() + text[1:] + ("?" if asks else ".")


def _draw(rng: random.Random, phrasings: Sequence[str], count: int, used: set[str]) -> list[str] | None:
    """Write ``count`` new sentences, or None where the phrasings do not give as many.

    Args:
        rng: Source of every choice.
        phrasings: Taken in turn, so that each gets about the same share.
        count: How many sentences.
        used: The words of each sentence written so far; the new ones are added.
    """
    sentences: list[str] = []
    turn = misses = 0
    while len(sentences) < count:
        text = _sentence(rng, phrasings[turn % len(phrasings)])
        turn += 1
        words = text.casefold().rstrip("?.")
        if words not in used:
            used.add(words)
            sentences.append(text)
            misses = 0
        elif misses == _MAX_MISSES:
            return None
        else:
            misses += 1
    return sentences


def generate_intents(
    seed: int = 0,
    *,
    train_per_intent: int = 60,
    val_per_intent: int = 15,
    test_per_intent: int = 30,
    out_of_scope: tuple[int, int, int] = (100, 60, 200),
) -> dict[str, list[tuple[str, str]]]:
    """Write the corpus: the same rows for the same arguments on every machine.

    In validation and test, half of an intent's rows (the larger half) come from phrasings that
    training never shows, the others from its own phrasings with other fillers or frames.
    Out-of-scope rows share no phrasing between splits. No sentence occurs twice.

    Args:
        seed: Chooses fillers, frames and the order of the rows.
        train_per_intent: Training rows of each intent.
        val_per_intent: Validation rows of each intent.
        test_per_intent: Test rows of each intent.
        out_of_scope: Rows without an intent in train, val and test.

    Returns:
        Shuffled ``(text, intent)`` rows under "train", "val" and "test".

    Raises:
        ValueError: If a size is negative or exceeds what the grammar can write.
    """
    rng = random.Random(seed)  # noqa: S311  # sentences, not secrets
    used: set[str] = set()
    per_intent = {"train": train_per_intent, "val": val_per_intent, "test": test_per_intent}
    corpus: dict[str, list[tuple[str, str]]] = {}
    for index, (split, count) in enumerate(per_intent.items()):
        # (intent, name of the size for messages, rows, paragraph)
        requests = [(OUT_OF_SCOPE, f"out_of_scope[{index}]", out_of_scope[index], NO_INTENT[index])]
        for intents in INTENTS.values():
            for intent, paragraphs in intents.items():
                seen = 0 if split == "train" else count // 2
                name = f"{split}_per_intent"
                requests.append((intent, name, count - seen, paragraphs[index]))
                requests.append((intent, name, seen, paragraphs.train))
        rows: list[tuple[str, str]] = []
        for intent, name, wanted, paragraph in requests:
            size = out_of_scope[index] if intent == OUT_OF_SCOPE else count
            if wanted < 0:
                msg = f"{name} is {size}, but a number of sentences is at least 0."
                raise ValueError(msg)
            sentences = _draw(rng, _phrasings(paragraph), wanted, used)
            if sentences is None:
                msg = (
                    f"{name} is {size}, but the grammar cannot write that many distinct sentences for intent "
                    f"{intent!r}; set a smaller number."
                )
                raise ValueError(msg)
            rows.extend((text, intent) for text in sentences)
        corpus[split] = sorted(rows, key=lambda _: rng.random())
    return corpus
