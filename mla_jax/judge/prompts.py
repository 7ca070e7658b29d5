"""The beginnings that models are asked to go on from."""

from collections.abc import Sequence

import numpy as np

from mla_jax.judge.sentences import first_sentence

MAX_PROMPT_WORDS = 60

# Written for this project in the manner of TinyStories: one or two plain sentences, and something left open.
OPENINGS = (
    "Once upon a time there was a small blue boat that had never left the pond.",
    "Lily found a key under the old apple tree. She did not know what it opened.",
    "Ben wanted to bake a cake for his grandma, but there was no sugar in the house.",
    "One rainy morning, Mia heard a tiny voice inside her boot.",
    "The little fox was afraid of the dark, and tonight the moon was hidden.",
    "Sam and his sister Ella had only one sled, and both of them wanted to go first.",
    "There was a bear who could not sleep, even though winter had come.",
    "Tom lost his favorite red mitten on the way to the park.",
    "Every day, an old man fed the ducks. Today he did not come.",
    "Anna had a secret. She kept it in a box with a yellow ribbon.",
    "A little bird fell out of its nest, right next to Max the dog.",
    "Nora wanted to be as tall as her big brother, so she asked the tree how it had grown.",
    "Leo's kite got stuck on the roof of the neighbor's house.",
    "In a quiet village lived a cat who wanted to learn how to swim.",
    "Rosa saved all her coins in a jar. One day the jar was empty.",
    '"Do not open that door," said Mom. But Jack was very curious.',
    "A snail and a rabbit lived next to each other, and they both loved to race.",
    "Zoe planted one seed, and the next morning something strange was there.",
    "Dad promised to take Finn to the sea, but then the car would not start.",
    "The smallest star in the sky thought that nobody could see it.",
    "Emma was mad at her best friend because of a broken doll.",
    "Oliver the owl had lost his glasses and could not read to the mice.",
    "On her first day at the new school, Ruby did not know anyone.",
    "A big box stood in front of the house. There was no name on it.",
    "Peter told his mom that he had washed his hands, but it was not true.",
    "The toy train was tired of going around in the same circle.",
    "Kate had a loud drum, and her baby brother wanted to sleep.",
    "Once there was a dragon who could not make fire, only bubbles.",
    "Amy and Dan built a tower of blocks that was taller than a chair.",
    "A lost puppy sat at the bus stop in the snow.",
    "Grandpa gave Noah an old map with a big X on it.",
    "The queen's crown was gone, and a shiny feather lay in its place.",
    "Lucy did not like soup. Today there was nothing but soup.",
    "Billy wanted to help the farmer, but the goat had another idea.",
    "There was one cookie left, and three children looked at it.",
    "The little cloud wanted to rain, but the people were having a picnic.",
    "Sue drew a door on the wall with her chalk, and the door opened.",
    "Charlie's balloon flew away, higher and higher, over the town.",
    "A mouse found a piece of cheese that was bigger than its house.",
    "Maya was brave in everything, except when there was thunder.",
    "The robot in Tim's room had never spoken before. Tonight it said hello.",
    "Hannah promised to water her neighbor's flowers, and then she forgot.",
    "Two frogs sat on one leaf, and the leaf began to sink.",
    "Every night, Jim heard somebody singing behind the garden wall.",
    "The snowman saw the sun come up and began to worry.",
    "Clara found a wallet on the street with a lot of money in it.",
    "Little Pig wanted to fly, so he asked the birds how they do it.",
    "It was Eva's birthday, but nobody seemed to remember.",
    "The shepherd counted his sheep. One of them was missing.",
    "Joe had a tooth that was loose, and he was afraid to touch it.",
)


def build_prompts(held_out: Sequence[str], num_prompts: int, builtin: int, seed: int) -> list[str]:
    """`builtin` built-in openings and, up to `num_prompts` in all, first sentences of held-out stories.

    Distinct, in an order fixed by `seed`: a smaller number gives a prefix of the held-out part of a larger
    one. When the held-out stories run out, built-in openings take their place as far as there are any.
    """
    rng = np.random.default_rng(seed)
    held: dict[str, None] = {}
    for index in rng.permutation(len(held_out)):
        sentence = first_sentence(held_out[index])
        if 3 <= len(sentence.split()) <= MAX_PROMPT_WORDS:
            held.setdefault(sentence)
        if len(held) >= num_prompts - builtin:
            break
    openings = [OPENINGS[i] for i in np.random.default_rng(seed).permutation(len(OPENINGS))]
    chosen = list(held)[: num_prompts - builtin]
    return chosen + openings[: num_prompts - len(chosen)]
