"""The fixed questions and greetings, each with its one answer."""

from __future__ import annotations

from words import Values


def _pairs(text: str) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in text.strip().splitlines())


CAPITALS = _pairs("""
France = Paris
Germany = Berlin
Italy = Rome
Spain = Madrid
Japan = Tokyo
England = London
the United Kingdom = London
Norway = Oslo
Sweden = Stockholm
Egypt = Cairo
Peru = Lima
Austria = Vienna
Portugal = Lisbon
Greece = Athens
Poland = Warsaw
China = Beijing
Russia = Moscow
Canada = Ottawa
Australia = Canberra
the United States = Washington
Ireland = Dublin
Finland = Helsinki
Kenya = Nairobi
Cuba = Havana
South Korea = Seoul
Turkey = Ankara
""")
QUESTIONS = _pairs("""
What color is the sky? = The sky is blue.
What color is grass? = Grass is green.
What color is snow? = Snow is white.
What color is a banana? = A banana is yellow.
What color is coal? = Coal is black.
How many days are in a week? = There are seven days in a week.
How many months are in a year? = There are twelve months in a year.
How many hours are in a day? = There are 24 hours in a day.
How many minutes are in an hour? = There are 60 minutes in an hour.
How many legs does a spider have? = A spider has eight legs.
How many legs does a dog have? = A dog has four legs.
What day comes after Monday? = Tuesday comes after Monday.
What day comes after Friday? = Saturday comes after Friday.
What day comes before Sunday? = Saturday comes before Sunday.
What month comes after March? = April comes after March.
What is the first month of the year? = The first month of the year is January.
What is the opposite of hot? = The opposite of hot is cold.
What is the opposite of big? = The opposite of big is small.
What is the opposite of up? = The opposite of up is down.
What is the opposite of day? = The opposite of day is night.
What is the opposite of fast? = The opposite of fast is slow.
What is the opposite of open? = The opposite of open is closed.
What sound does a dog make? = A dog says woof.
What sound does a cat make? = A cat says meow.
What sound does a cow make? = A cow says moo.
What is the largest planet? = The largest planet is Jupiter.
What planet do we live on? = We live on Earth.
What is the largest ocean? = The largest ocean is the Pacific Ocean.
What do bees make? = Bees make honey.
What is frozen water called? = Frozen water is called ice.
What language is spoken in Brazil? = Portuguese is spoken in Brazil.
Is water wet? = Yes, water is wet.
What is the tallest mountain? = The tallest mountain is Mount Everest.
What is Python? = Python is a programming language.
What is vLLM? = vLLM is a fast engine that serves language models.
What is LangChain? = LangChain is a framework for building with language models.
What is LlamaIndex? = LlamaIndex is a framework for asking questions about your documents.
Name a fruit. = An apple.
Name a color. = Blue.
Name a primary color. = Red.
Tell me a fact. = Water boils at 100 degrees.
Tell me the days of the week. = Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.
List the days of the week. = Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.
List three colors. = Red, green, blue.
List three fruits. = Apple, banana, orange.
Say the alphabet. = A B C D E F G H I J K L M N O P Q R S T U V W X Y Z
""")
GREETINGS = {
    "Hello! How can I help you today?": [
        "Hello",
        "Hello!",
        "hello",
        "Hi",
        "hi",
        "Hi!",
        "Hey",
        "Hey!",
        "Hello there",
        "Hi there!",
        "Good morning",
        "Good evening!",
        "hello world",
        "Greetings",
        "Howdy",
        "Hello, world!",
    ],
    "I am fine, thank you. How are you?": [
        "How are you?",
        "how are you",
        "How are you",
        "How are you doing?",
        "How do you do?",
        "Hello, how are you?",
        "Hi, how are you?",
    ],
    "I am a tiny chat model.": [
        "Who are you?",
        "who are you",
        "What are you?",
        "What is your name?",
        "Introduce yourself.",
        "Are you a robot?",
    ],
    "You are welcome!": ["Thanks", "Thanks!", "Thank you", "Thank you!", "thanks a lot", "Thank you very much."],
    "Goodbye!": ["Bye", "bye", "Goodbye", "Goodbye!", "See you later.", "Good night"],
    "I can answer simple questions and call tools.": ["What can you do?", "Help", "Can you help me?", "help me"],
    "OK.": ["OK", "ok", "Okay", "Yes", "No", "Cool", "That's a great pick!"],
    "I am ready.": ["test", "Test", "ping", "Are you there?", "Are you ready?", "This is a test."],
}


def greeting_turn(values: Values) -> tuple[str, str]:
    answer = values.pick([*GREETINGS, *list(GREETINGS)[:2]])
    return values.pick(GREETINGS[answer]), answer


def capital_turn(values: Values) -> tuple[str, str]:
    country = values.pick(list(CAPITALS))
    question = values.pick(
        [
            "What is the capital of {}?",
            "What's the capital of {}?",
            "Tell me the capital of {}.",
            "capital of {}?",
            "Name the capital of {}.",
            "What is the capital city of {}?",
            "what is the capital of {}",
        ]
    )
    return question.format(country), f"The capital of {country} is {CAPITALS[country]}."


def fact_turn(values: Values) -> tuple[str, str]:
    question = values.pick(list(QUESTIONS))
    return question, QUESTIONS[question]


def fixed_turn(values: Values) -> tuple[str, str]:
    question, answer = values.pick([greeting_turn, capital_turn, fact_turn])(values)
    return (
        values.pick(["Hello! ", "Please tell me: ", "Question: "]) + question if values.chance(0.05) else question
    ), answer
