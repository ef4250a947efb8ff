"""What prose claims about results: number of the notebook or name of the page, its exact words, an expression.

Expressions are over the tables of one seed; their functions are the methods of `test_claims.Run`. `CLAIMS` are about
every run on the default data at the default preset, `AUDIT_CLAIMS` about the published audit on CIFAR-10.
"""

CLAIMS = [
    (
        "02",
        "Two retrained models differ too,",
        "all(value(s, 'Gold 2', 'JSD to Gold') > 0 for s in BOTH)",
    ),
    (
        "02",
        "In the class scenario Gold's curve for the forgotten class stays at zero: Gold never saw an image of it.",
        "value('class', 'Gold', 'tracked accuracy', 'forget') == 0",
    ),
    (
        "02",
        "In the random scenario Gold is *right* about most forgotten images: it never saw them,",
        "value('random', 'Gold', 'accuracy', 'forget') > 50",
    ),
    (
        "02",
        "The target for the forgotten images is Gold's accuracy, about its test accuracy, not zero.",
        "abs(value('random', 'Gold', 'accuracy', 'forget') - value('random', 'Gold', 'accuracy', 'test')) < 12",
    ),
    (
        "02",
        "In the random scenario Original is right about more of the forgotten images than Gold is.",
        "value('random', 'Original', 'accuracy', 'forget') > value('random', 'Gold', 'accuracy', 'forget') + 3",
    ),
    (
        "02",
        "In the class scenario Gold's zero is structural: no retained image has the label,",
        "all(value('class', name, 'accuracy', s) == 0 for name in golds('class') for s in ('forget', 'test forget'))",
    ),
    (
        "03",
        "In the class scenario their predictions change nevertheless: no retained image has the forgotten label,",
        "value('class', 'Fine-tuning', 'accuracy', 'forget') < value('class', 'Original', 'accuracy', 'forget')",
    ),
    (
        "04",
        "The count of images treats all epochs alike,",
        "per_epoch('random', 'M2 Selective FT', 'images') == per_epoch('random', 'M1 Retain FT', 'images')",
    ),
    (
        "06",
        "it uses only as many retained batches as forgotten ones.",
        "all(per_epoch(s, 'M5 Per batch', 'steps') == 2 * per_epoch(s, 'Gradient ascent', 'steps') for s in BOTH)",
    ),
    (
        "08",
        "an epoch uses only as many retained batches as forgotten ones.",
        "all(round(per_epoch(s, '2-Stage', 'steps')) == per_epoch(s, 'Gradient ascent', 'steps') for s in BOTH)",
    ),
    (
        "10",
        "Learning rates and numbers of epochs differ between methods,",
        "all(len(settings(s, name)) > 1 for s in BOTH for name in ('lr', 'epochs'))",
    ),
    (
        "11",
        "The first four then fine-tune on retained images to repair the model. The last three never train.",
        "all(value(s, name, 'steps') > 0 for s in BOTH for name in ('NoT', 'NoT+CL', 'CT', 'MSG'))"
        " and all(value(s, name, 'steps') == 0 for s in BOTH for name in ('SSD', 'Fisher', 'Influence'))",
    ),
    (
        "11",
        "counts every processed image, including those used to compute masks",
        "all(value(s, 'SSD', 'images') > 0 for s in BOTH)",
    ),
    (
        "11",
        "UNSIR, DELETE and TREW are defined for a class.",
        "{'UNSIR', 'DELETE', 'TREW'} <= methods('class') and not {'UNSIR', 'DELETE', 'TREW'} & methods('random')",
    ),
    (
        "11",
        "In the class scenario Original recognises the class on held-out images too,",
        "value('class', 'Original', 'accuracy', 'test forget') > 50 and 'ReGUn' not in methods('class')",
    ),
    (
        "12",
        "Original was trained on the forgotten images, so few of them have a high loss: look at the right tail.",
        "all(attack(s, 'Original', 'Streisand KS') < 0 for s in BOTH)",
    ),
    (
        "12",
        "Gold's losses have the same distribution on forgotten and unseen images: this is the target.",
        "abs(attack('random', 'Gold', 'Streisand KS')) < 0.2",
    ),
    (
        "12",
        "is the similarity to an untrained network, from 0.307 to 1.",
        "all(0.306 < attack(s, name, 'ZRF') <= 1 for s in BOTH for name in ('Original', *golds(s)))",
    ),
    (
        "12",
        "Two Golds show how much a value changes with the seed alone.",
        "all(attack(s, 'Gold', 'ZRF') != attack(s, 'Gold 2', 'ZRF') for s in BOTH)",
    ),
    (
        "12",
        "Gold's value is above 0.5, since Gold has learnt features from other classes.",
        "all(attack('class', name, 'class attack') > 0.6 for name in golds('class'))",
    ),
    (
        "13",
        "Gold's row has no U-LiRA and no forgetting quality in the class scenario, or with fewer than three Golds.",
        "has_audit('random', 'Gold', 'U-LiRA AUC') == (len(golds('random')) >= 3)",
    ),
    (
        "15",
        "The model confuses the two classes, also on test images.",
        "left('swapped labels', 0, 'Original', 'accuracy, swapped classes')"
        " < left('swapped labels', 0, 'Clean Gold', 'accuracy, swapped classes') - 5",
    ),
    (
        "15",
        "The model then predicts the target for any image with the square.",
        "left('backdoor', 0, 'Original', 'attack success') > 80",
    ),
    (
        "15",
        "the model is as accurate as any other, so accuracy does not reveal the backdoor.",
        "abs(left('backdoor', 0, 'Original', 'accuracy, clean images')"
        " - left('backdoor', 0, 'Clean Gold', 'accuracy, clean images')) < 8",
    ),
]

AUDIT_CLAIMS = [
    (
        "results",
        "Margin matching's accuracy on the forgotten images is within 6 points of Gold's.",
        "abs(audited('random', 'Margin matching', 'UA') - audited('random', GOLDS, 'UA')) < 6"
        " and audited('random', 'Margin matching', 'U-LiRA AUC') > 0.65",
    ),
    (
        "results",
        "No method in this table reaches the floor.",
        "all(audited('random', name, 'average gap') > 4 * floor('random')"
        " for name in audited_models('random', 'method'))",
    ),
    (
        "results",
        "No method keeps retained accuracy within 2 points of Gold's at a tenth of retraining's cost or less.",
        "all(abs(audited('random', name, 'RA') - audited('random', GOLDS, 'RA')) > 2"
        " for name in audited_models('random', 'method')"
        " if name != 'Margin matching' and audited('random', name, 'images, % of retraining') <= 10)",
    ),
    (
        "results",
        "The methods below the line lost 7 to 22 points.",
        "all(6.5 < audited('random', GOLDS, 'RA') - audited('random', name, 'RA') < 22"
        " for name in audited_models('random', 'method') if name not in ('Margin matching', 'ReGUn'))",
    ),
    (
        "results",
        "MIA nearly repeats UA here: a model that never predicts the class has no confidence in it.",
        "all(abs(audited('class', name, 'MIA') - audited('class', name, 'UA')) < 1"
        " for name in audited_models('class', 'method'))",
    ),
    (
        "results",
        "By JSD, DELETE and Margin matching end just above the floor and far below a uniform prediction.",
        "sorted(audited_models('class', 'method'), key=lambda name: audited('class', name, 'JSD to Gold'))[:2]"
        " == ['Margin matching', 'DELETE']"
        " and 0 < audited('class', 'DELETE', 'JSD to Gold') - floor('class', 'JSD to Gold') < 0.03"
        " and audited('class', 'DELETE', 'JSD to Gold') < audited('class', 'uniform', 'JSD to Gold') - 0.1",
    ),
]
