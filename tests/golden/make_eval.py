"""Makes tests/golden/eval: benchmarks in their published formats, small and written here, answers to
them, and what the official scorers say of those answers.

    python tests/golden/make_eval.py --official DIR

DIR holds the official scorers, none of which is in this repository:
- vqaEval.py: PythonEvaluationTools/vqaEvaluation/vqaEval.py of GT-Vision-Lab/VQA at c4e6a0e
  (lavis/common/vqa_tools/vqa_eval.py of the package salesforce-lavis 1.0.2 is the same)
- m4c_evaluators.py: mmf/utils/m4c_evaluators.py of facebookresearch/mmf at 2dc099a
- pope_evaluate.py: evaluate.py of AoiDragon/POPE at f3ec604, the two paths at its top read from argv
- gqa_eval.py: eval.py of https://nlp.stanford.edu/data/gqa/eval.zip
Beside them the package pycocoevalcap 1.2, which needs Java for its tokenizer, and numpy.
"""

import argparse
import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from eval_texts import CAPTIONS, NAMES, STRINGS, VQA_ANSWERS

OUT = Path(__file__).parent / "eval"


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def write(path, value):
    path = OUT / path
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
    path.write_text(text)


def vqa(official, folder, files, n, seed, field):
    """VQAv2's and OK-VQA's format; ten people who agree, nearly agree, or do not."""
    draw = random.Random(seed)
    questions, annotations, answers = [], [], []
    for i in range(n):
        question_id, image_id = 1000 * (i + 1) + seed, 42 + i // 3
        questions.append({"question_id": question_id, "image_id": image_id, "question": f"What is number {i}?"})
        pool = draw.sample(VQA_ANSWERS, draw.choice([1, 1, 2, 3, 5]))
        weights = [2 ** -k for k in range(len(pool))]
        people = draw.choices(pool, weights, k=10)
        annotations.append({
            "question_id": question_id,
            "image_id": image_id,
            "question_type": "what is",
            "answer_type": draw.choice(["yes/no", "number", "other"]),
            "multiple_choice_answer": people[0],
            "answers": [
                {"answer": person, field: draw.choice(["yes", "maybe", "no"]), "answer_id": k + 1}
                for k, person in enumerate(people)
            ],
        })
        # Now and then a person stands twice under one id, whom the scorer takes for one.
        if i % 17 == 0:
            annotations[-1]["answers"][1] = dict(annotations[-1]["answers"][0])
        given = draw.choice(people) if draw.random() < 0.7 else draw.choice(VQA_ANSWERS)
        if draw.random() < 0.3:
            given = draw.choice(["{}.", "the {}", "{}\n", " {} ", "A {}!", "{}?", "({})", "{}, really", "\"{}\""]).format(given)
        answers.append({"question_id": question_id, "answer": given})
    write(f"{folder}/{files[0]}", {"data_subtype": "val2014", "questions": questions})
    write(f"{folder}/{files[1]}", {"data_subtype": "val2014", "annotations": annotations})
    write(f"{folder}/answers.json", answers)

    class Data:
        def __init__(self, qa):
            self.qa = qa

        def getQuesIds(self):
            return list(self.qa)

    by_id = lambda records: {record["question_id"]: record for record in json.loads(json.dumps(records))}
    scorer = official.VQAEval(Data(by_id(annotations)), Data(by_id(answers)), n=10)
    scorer.updateProgress = lambda progress: None
    scorer.evaluate()
    scores = {"accuracy": scorer.accuracy["overall"]}
    for kind, value in scorer.accuracy["perAnswerType"].items():
        scores[f"accuracy {kind}"] = value
    normalized = {}
    for text in VQA_ANSWERS + [answer["answer"] for answer in answers]:
        cleaned = text.replace("\n", " ").replace("\t", " ").strip()
        normalized[text] = scorer.processDigitArticle(scorer.processPunctuation(cleaned))
    return scores, normalized


def textvqa(official, n, seed):
    draw = random.Random(seed)
    data, answers, predictions = [], [], []
    for i in range(n):
        pool = draw.sample(VQA_ANSWERS, draw.choice([1, 2, 3, 6]))
        people = draw.choices(pool, [2 ** -k for k in range(len(pool))], k=10)
        given = draw.choice(people) if draw.random() < 0.8 else draw.choice(VQA_ANSWERS)
        if draw.random() < 0.3:
            given = draw.choice(["{}.", "{}'s", "The {}", "{}, {}", "{}?"]).replace("{}", given)
        data.append({
            "question_id": 34000 + i, "image_id": f"00{i:014x}", "set_name": "val",
            "question": f"what does sign {i} say?", "answers": people,
        })
        answers.append({"question_id": 34000 + i, "answer": given})
        predictions.append({"pred_answer": given, "gt_answers": people})
    write("textvqa/TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": data})
    write("textvqa/answers.json", answers)
    processor = official.EvalAIAnswerProcessor()
    texts = VQA_ANSWERS + [prediction["pred_answer"] for prediction in predictions]
    accuracy = official.TextVQAAccuracyEvaluator().eval_pred_list(predictions)
    return {"accuracy": 100 * accuracy}, {text: processor(text) for text in texts}


def gqa(official, vqa_official, n, seed):
    draw = random.Random(seed)
    things = ["yes", "no", "left", "right", "black", "blue", "dog", "cat", "table", "man", "fence", "cell phone"]
    questions, answers = {}, []
    for i in range(n):
        structural = draw.choice(["query", "verify", "logical", "choose", "compare"])
        answer = draw.choice(["yes", "no"] if structural in ("verify", "logical") else things)
        question_id = f"{20000000 + 7919 * i}"
        questions[question_id] = {
            "question": f"Is thing {i} there?", "imageId": f"n{i}", "answer": answer,
            "isBalanced": i % 11 != 0, "semantic": [{"operation": "select", "argument": "thing"}],
            "types": {"structural": structural, "semantic": draw.choice(["obj", "rel"]), "detailed": "existThat"},
            "groups": {"global": draw.choice([None, "color", "animal", "place"]), "local": None},
        }
        given = answer if draw.random() < 0.6 else draw.choice(things)
        if draw.random() < 0.2:
            given = draw.choice(["{}.", "the {}", "{}", "{} "]).format(given.capitalize())
        answers.append({"questionId": question_id, "prediction": given})
    write("gqa/testdev_balanced_questions.json", questions)
    write("gqa/answers.json", answers)
    # It prints two digits; its own numbers are wanted.
    source = official.read_text().replace(":.2f", ":.10f")
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "eval.py"
        script.write_text(source)
        printed = subprocess.run(
            [sys.executable, script, "--questions", OUT / "gqa/testdev_balanced_questions.json",
             "--predictions", OUT / "gqa/answers.json"],
            capture_output=True, text=True, check=True, cwd=directory,
        ).stdout
    told = {name: float(value) for name, value in re.findall(r"^(\w+): ([\d.]+)", printed, re.M)}
    tool = vqa_official.VQAEval()
    normalize = lambda text: tool.processDigitArticle(tool.processPunctuation(text))
    balanced = [a for a in answers if questions[a["questionId"]]["isBalanced"]]
    right = [normalize(a["prediction"]) == questions[a["questionId"]]["answer"] for a in balanced]
    return {
        "accuracy": told["Accuracy"], "accuracy binary": told["Binary"], "accuracy open": told["Open"],
        "accuracy normalized": 100 * sum(right) / len(right), "distribution": told["Distribution"],
    }


def pope(official, n, seed):
    draw = random.Random(seed)
    lines, answers = [], []
    phrases = ["Yes", "No", "yes", "no", "Yes, there is {}.", "No, there is no {}.", "There is not {} in it.",
               "NO", "Yes. No.", "no.", "Not that I see", "", "It is a {}, no?", "I see nothing", "No{}", "yes no"]
    for i in range(n):
        thing = draw.choice(["a dog", "a cat", "a snowboard", "an apple"])
        lines.append(json.dumps({
            "question_id": i + 1, "image": f"COCO_val2014_{i // 6:012}.jpg",
            "text": f"Is there {thing} in the image?", "label": draw.choice(["yes", "no"]),
        }))
        question = json.loads(lines[-1])["text"]
        answers.append(json.dumps({"question": question, "answer": draw.choice(phrases).format(thing)}))
    write("pope/coco_pope_random.json", "\n".join(lines) + "\n")
    write("pope/answers.json", "\n".join(answers) + "\n")
    printed = subprocess.run(
        [sys.executable, official, OUT / "pope/answers.json", OUT / "pope/coco_pope_random.json"],
        capture_output=True, text=True, check=True,
    ).stdout
    told = dict(re.findall(r"^([\w ]+): ([\d.e-]+)", printed, re.M))
    names = {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1 score": "f1", "Yes ratio": "yes ratio"}
    return {name: float(told[title]) for title, name in names.items()}


def captions(folder, file, n, seed, domains):
    """People's captions of scenes, and a model's: near, far, empty, repeated."""
    draw = random.Random(seed)
    images, annotations, answers = [], [], []

    def caption(scene):
        return draw.choice(CAPTIONS).format(*scene)

    for i in range(n):
        scene = draw.sample(NAMES, 4)
        image_id = 100 + 7 * i
        image = {"id": image_id, "file_name": f"COCO_val2014_{image_id:012}.jpg"}
        if domains:
            image = {"id": image_id, "file_name": f"{image_id:016x}.jpg", "domain": draw.choice(domains)}
        images.append(image)
        for _ in range(draw.choice([1, 5, 5, 5, 7])):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "caption": caption(scene)})
        given = caption(scene if draw.random() < 0.8 else draw.sample(NAMES, 4))
        given = draw.choice([given, given, given, given.lower().rstrip("."), given + " " + given, given[: draw.randrange(40)]])
        answers.append({"image_id": image_id, "caption": given})
    answers[0]["caption"] = ""
    answers[1]["caption"] = "..."
    answers[2]["caption"] = next(a["caption"] for a in annotations if a["image_id"] == images[2]["id"])
    write(f"{folder}/{file}", {"images": images, "annotations": annotations})
    write(f"{folder}/answers.json", answers)
    people = {image["id"]: [] for image in images}
    for annotation in annotations:
        people[annotation["image_id"]].append({"caption": annotation["caption"]})
    model = {answer["image_id"]: [{"caption": answer["caption"]}] for answer in answers}
    scores = caption_scores(people, model)
    for domain in domains:
        ids = [image["id"] for image in images if image["domain"] == domain]
        part = caption_scores({i: people[i] for i in ids}, {i: model[i] for i in ids})
        scores[f"CIDEr {domain}"] = part["CIDEr"]
    return scores


def caption_scores(people, model):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    people, model = tokenizer.tokenize(people), tokenizer.tokenize(model)
    bleu, _ = Bleu(4).compute_score(people, model, verbose=0)
    scores = {f"BLEU-{k + 1}": value for k, value in enumerate(bleu)}
    scores["ROUGE-L"] = Rouge().compute_score(people, model)[0]
    scores["CIDEr"] = Cider().compute_score(people, model)[0]
    return {name: float(value) for name, value in scores.items()}


def tokens():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    strings = list(dict.fromkeys(STRINGS))
    found = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(strings)})
    return [[text, found[i][0]] for i, text in enumerate(strings)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, required=True)
    directory = parser.parse_args().official.resolve()
    vqa_official = module(directory / "vqaEval.py")
    golden = {}
    golden["vqav2"], vqa_normalized = vqa(
        vqa_official, "vqav2",
        ["v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"], 300, 1, "answer_confidence",
    )
    golden["okvqa"], _ = vqa(
        vqa_official, "okvqa",
        ["OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"], 100, 2, "raw_answer",
    )
    golden["textvqa"], textvqa_normalized = textvqa(module(directory / "m4c_evaluators.py"), 200, 3)
    golden["gqa"] = gqa(directory / "gqa_eval.py", vqa_official, 300, 4)
    golden["pope"] = pope(directory / "pope_evaluate.py", 300, 5)
    golden["coco"] = captions("coco", "captions_val2014.json", 200, 6, [])
    golden["nocaps"] = captions("nocaps", "nocaps_val_4500_captions.json", 120, 7, ["in-domain", "near-domain", "out-domain"])
    write("scores.json", golden)
    write("normalized.json", {"vqa": vqa_normalized, "textvqa": textvqa_normalized})
    write("tokens.json", tokens())


if __name__ == "__main__":
    main()
