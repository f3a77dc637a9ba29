//! What is wrong with a file is told with the file, the record and the field.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use eval::{Answers, Dataset, Files, Task};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden/eval")
        .join(path)
}

/// What is said of a task's file with these contents.
fn refused(task: Task, contents: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let questions = dir.path().join("file.json");
    std::fs::write(&questions, contents).unwrap();
    let files = Files {
        questions,
        annotations: None,
    };
    let error = Dataset::read(task, &files, None).unwrap_err().to_string();
    let (_, told) = error.split_once("file.json: ").expect("the file is named");
    told.to_owned()
}

#[test]
fn a_wrong_field_is_named() {
    let line = r#"{"question_id":1,"image":"a.jpg","text":"Is it?","label":"yes"}"#;
    for (task, contents, told) in [
        (
            Task::Vqav2,
            "",
            "EOF while parsing a value at line 1 column 0",
        ),
        (
            Task::Vqav2,
            r#"{"questions":[]}"#,
            "missing field `data_subtype`",
        ),
        (
            Task::Vqav2,
            r#"{"data_subtype":"val2014","questions":[{"question_id":1,"image_id":"x","question":"q"}]}"#,
            "questions[0].image_id: invalid type: string \"x\", expected u64",
        ),
        (
            Task::Okvqa,
            r#"{"data_subtype":"val2014","questions":[{"question_id":-1,"image_id":1,"question":"q"}]}"#,
            "questions[0].question_id: invalid type: integer `-1`, expected an id",
        ),
        (
            Task::Okvqa,
            r#"{"data_subtype":"abstract","questions":[]}"#,
            "data_subtype: \"abstract\" is no part of COCO, such as val2014",
        ),
        (
            Task::Vqav2,
            r#"{"data_subtype":"val2014","questions":[]}"#,
            "no questions are in it",
        ),
        (
            Task::Vqav2,
            r#"{"data_subtype":"val2014","questions":[{"question_id":1,"image_id":1,"question":"a"},
               {"question_id":1,"image_id":1,"question":"b"}]}"#,
            "the id 1 is there twice",
        ),
        (
            Task::Gqa,
            r#"{"1":{"question":"q"}}"#,
            "1: missing field `imageId`",
        ),
        (
            Task::Textvqa,
            r#"{"data":[{"question_id":1,"image_id":"a","question":"q","answers":["x"]}]}"#,
            "data[0].answers: 1 answers, there must be 10",
        ),
        (
            Task::Coco,
            r#"{"images":[{"id":1}],"annotations":[{"image_id":1,"caption":null}]}"#,
            "annotations[0].caption: invalid type: null, expected a string",
        ),
        (
            Task::Coco,
            r#"{"images":[{"id":1},{"id":2}],"annotations":[{"image_id":1,"caption":"a"}]}"#,
            "annotations: no caption of the picture 2",
        ),
        (
            Task::Nocaps,
            r#"{"images":[{"id":1}]}"#,
            "images[0]: missing field `file_name`",
        ),
        (
            Task::Pope,
            &format!("{line}\n{{\n"),
            "line 2: EOF while parsing",
        ),
        (
            Task::Pope,
            &line.replace("\"yes\"", "\"maybe\""),
            "line 1, label: \"maybe\" is neither \"yes\" nor \"no\"",
        ),
        (
            Task::Pope,
            &line.replace("\"a.jpg\"", "7"),
            "line 1, image: invalid type: integer `7`",
        ),
    ] {
        let found = refused(task, contents);
        assert!(found.starts_with(told), "{contents}: {found}");
    }
}

#[test]
fn an_annotation_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let annotations = dir.path().join("annotations.json");
    std::fs::write(&annotations, r#"{"annotations":[]}"#).unwrap();
    let files = Files {
        questions: golden("vqav2/v2_OpenEnded_mscoco_val2014_questions.json"),
        annotations: Some(annotations),
    };
    let error = Dataset::read(Task::Vqav2, &files, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("annotations.json: annotations: no annotation of the question 1001"),
        "{error}"
    );
}

#[test]
fn files_and_splits_that_are_not_there_are_named() {
    let error = Task::Gqa
        .find(&golden("coco"), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("testdev_balanced_questions.json of gqa is not here"),
        "{error}"
    );
    let error = Task::Pope
        .find(&golden("pope"), Some("rare"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("pope has no split \"rare\", it has random, popular, adversarial"),
        "{error}"
    );
}

#[test]
fn answers_come_in_several_forms() {
    let files = Task::Gqa.find(&golden("gqa"), None).unwrap();
    let dataset = Dataset::read(Task::Gqa, &files, Some(2)).unwrap();
    let ids: Vec<String> = dataset
        .records
        .iter()
        .map(|record| record.id.to_string())
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("answers");
    let aligned = |contents: &str| -> Result<Vec<String>, String> {
        std::fs::write(&path, contents).unwrap();
        let answers = Answers::read(&path).map_err(|error| error.to_string())?;
        answers
            .aligned(&dataset, &path)
            .map_err(|error| error.to_string())
    };
    let [a, b] = &ids[..] else { panic!("{ids:?}") };
    for contents in [
        format!(
            r#"[{{"questionId":"{b}","prediction":"y"}},{{"questionId":"{a}","prediction":"x"}}]"#
        ),
        format!(
            "{{\"settings\":{{}}}}\n{{\"id\":{a},\"answer\":\"x\"}}\n\n{{\"question_id\":{b},\"answer\":\"y\"}}\n"
        ),
        "{\"question\":\"q\",\"answer\":\"x\"}\n{\"question\":\"q\",\"answer\":\"y\"}\n".to_owned(),
    ] {
        assert_eq!(aligned(&contents).unwrap(), ["x", "y"], "{contents}");
    }
    for (contents, told) in [
        (
            format!(r#"[{{"id":"{a}","answer":"x"}}]"#),
            format!("no answer to 1 of 2 questions, the first is {b}"),
        ),
        (
            "[{\"id\":1}]".to_owned(),
            "record 1: no answer: one of answer, prediction".to_owned(),
        ),
        (
            "{\"id\":1,\"answer\":2}".to_owned(),
            "line 1: answer must be a string".to_owned(),
        ),
        (
            "{\"id\":1,\"answer\":\"a\"}\n{\"id\":1,\"answer\":\"b\"}".to_owned(),
            "line 2: id 1 is answered a second time".to_owned(),
        ),
        ("7".to_owned(), "line 1: an object is expected".to_owned()),
        (
            "{\"answer\":\"x\"}".to_owned(),
            "1 answers to 2 questions".to_owned(),
        ),
        ("[{".to_owned(), "EOF while parsing".to_owned()),
    ] {
        let error = aligned(&contents).unwrap_err();
        assert!(error.contains(&told), "{contents}: {error}");
    }
}

#[test]
fn answers_to_something_else_are_refused() {
    let files = Task::Pope.find(&golden("pope"), None).unwrap();
    let dataset = Dataset::read(Task::Pope, &files, Some(3)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("answers");
    let lines = |with_id: bool| -> Vec<String> {
        let line = |record: &eval::Record| {
            let (id, question) = (&record.id, record.question.to_uppercase());
            let id = match with_id {
                true => format!("\"id\":\"{id}\","),
                false => String::new(),
            };
            format!("{{{id}\"question\":\"{question}\",\"answer\":\"yes\"}}")
        };
        dataset.records.iter().map(line).collect()
    };
    let settings = |task: &str, num_beams: u64| {
        format!("{{\"settings\":{{\"task\":\"{task}\",\"num_beams\":{num_beams}}}}}")
    };
    let check = |lines: &[String], is_part: bool| -> Result<(), String> {
        std::fs::write(&path, lines.join("\n")).unwrap();
        let answers = Answers::read(&path).map_err(|error| error.to_string())?;
        let checked = answers.check(&dataset, &path, is_part);
        checked.map_err(|error| error.to_string())
    };
    for with_id in [false, true] {
        let of_file = lines(with_id);
        check(&of_file, false).unwrap();
        // The same twice, as of two parts.
        let begun = [vec![settings("pope", 1); 2], of_file.clone()].concat();
        check(&begun, false).unwrap();
        let mut more = of_file.clone();
        more.push(match with_id {
            true => "{\"id\":\"x\",\"answer\":\"no\"}".to_owned(),
            false => of_file[0].clone(),
        });
        check(&more, true).unwrap();
        let told = check(&more, false).unwrap_err();
        assert!(told.contains("line 4: "), "{told}");
    }
    let mut reversed = lines(false);
    reversed.reverse();
    let told = check(&reversed, false).unwrap_err();
    assert!(told.contains("line 1: question is "), "{told}");
    let error = "{\"answer\":null,\"error\":\"broken\"}".to_owned();
    for (lines, told) in [
        (
            vec![settings("pope", 1), settings("pope", 2)],
            "line 2: settings.num_beams is 2, and 1 in line 1",
        ),
        (
            vec![settings("vqav2", 1)],
            "line 1: settings.task is \"vqav2\", and pope is scored",
        ),
        (
            vec![error],
            "line 1: an error in the place of an answer needs an id",
        ),
        (
            vec![lines(false)[0].clone(), lines(true)[1].clone()],
            "line 2: id: those before have no id",
        ),
        (
            vec![lines(true)[0].clone(), lines(false)[1].clone()],
            "line 2: no id, which those before have",
        ),
    ] {
        let error = check(&lines, false).unwrap_err();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn rows_with_an_error_are_known_and_have_no_answer() {
    let files = Task::Gqa.find(&golden("gqa"), None).unwrap();
    let mut dataset = Dataset::read(Task::Gqa, &files, Some(2)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("answers");
    let [a, b] = [0, 1].map(|i| dataset.records[i].id.clone());
    let rows = format!(
        "{{\"id\":\"{a}\",\"answer\":null,\"error\":\"broken\"}}\n{{\"id\":\"{b}\",\"answer\":\"y\",\"error\":null}}\n"
    );
    std::fs::write(&path, &rows).unwrap();
    let answers = Answers::read(&path).unwrap();
    assert!(answers.has_failed(&a) && !answers.has_failed(&b) && answers.has(&b));
    assert!(answers.aligned(&dataset, &path).is_err());
    dataset.records.remove(0);
    assert_eq!(answers.aligned(&dataset, &path).unwrap(), ["y"]);
    // What failed and was answered too is answered twice.
    std::fs::write(&path, rows.replace(&b.to_string(), &a.to_string())).unwrap();
    let error = Answers::read(&path).unwrap_err().to_string();
    assert!(error.contains("a second time"), "{error}");
}

#[test]
fn submissions_are_read_back() {
    for task in Task::answered() {
        let dir = golden(task.name());
        let dataset = Dataset::read(task, &task.find(&dir, None).unwrap(), None).unwrap();
        let path = dir.join("answers.json");
        let answers = Answers::read(&path)
            .unwrap()
            .aligned(&dataset, &path)
            .unwrap();
        let out = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(out.path(), Answers::submission(&dataset, &answers)).unwrap();
        let again = Answers::read(out.path()).unwrap();
        assert_eq!(
            again.aligned(&dataset, out.path()).unwrap(),
            answers,
            "{}",
            task.name()
        );
    }
}
