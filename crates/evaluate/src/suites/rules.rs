//! Rules that several suites share, and small helpers of rules.

use crate::data::{Fields, Read};
use crate::task::Question;

/// The letters of Arabic options.
pub const ARABIC_LETTERS: [&str; 5] = ["أ", "ب", "ج", "د", "هـ"];

/// The letters of Latin options.
pub const LATIN_LETTERS: [&str; 5] = ["A", "B", "C", "D", "E"];

/// Owned texts.
pub fn owned<T: AsRef<str>>(texts: &[T]) -> Vec<String> {
    texts.iter().map(|text| text.as_ref().to_owned()).collect()
}

/// The cells A to D.
pub fn four(row: &Fields<'_>) -> Read<Vec<String>> {
    LATIN_LETTERS[..4].iter().map(|letter| row.text(letter)).collect()
}

/// The number of the letter A to D in a column.
pub fn letter(row: &Fields<'_>, column: &str) -> Read<usize> {
    row.one_of(column, &LATIN_LETTERS[..4])
}

/// The options of `MBZUAI/ArabicMMLU` and `MBZUAI/MadinahQA` that are not empty, with their places.
pub fn numbered_options(row: &Fields<'_>) -> Read<Vec<(usize, String)>> {
    let mut found = Vec::new();
    for place in 0..5 {
        let column = format!("Option {}", place + 1);
        // Files of subjects without a fifth option may lack its column.
        if place == 4 && row.get(&column).is_none() {
            continue;
        }
        found.extend(row.optional(&column)?.map(|text| (place, text)));
    }
    Ok(found)
}

/// The number of the right one among `options`, from the letter in `Answer Key`.
pub fn answer_key(row: &Fields<'_>, options: &[(usize, String)]) -> Read<usize> {
    let place = row.one_of("Answer Key", &LATIN_LETTERS)?;
    let found = options.iter().position(|(option, _)| *option == place);
    found.map_or_else(|| row.within("Answer Key", place, options.len()), Ok)
}

/// All columns but `query` and `label`, in the file's order: the choices of AlGhafa.
pub fn other_columns(row: &Fields<'_>) -> Read<Vec<String>> {
    let names = row.all().map(|(name, _)| name).filter(|name| !["query", "label", "__few_shots"].contains(name));
    names.map(|name| row.text(name)).collect()
}

/// AlGhafa's question: numbered options, and their texts as choices.
pub fn alghafa_texts(row: &Fields<'_>) -> Read<Question> {
    let choices = other_columns(row)?;
    let gold = row.within("label", row.index("label")?, choices.len())?;
    let instruction = "الأسئلة التالية هي أسئلة متعددة الإختيارات مع الجواب الصحيح\n\n";
    let mut text = format!("{instruction}السؤال: {}\n", row.text("query")?);
    for (number, choice) in choices.iter().enumerate() {
        text.push_str(&format!("{number}) {choice}\n"));
    }
    text.push_str("الإجابة:");
    Ok(Question::new(text, choices, gold).with_instruction(instruction))
}

/// ACVA's question on OALL's data.
pub fn acva(row: &Fields<'_>) -> Read<Question> {
    let choices = ["صح", "خطأ"];
    let gold = row.one_of("answer", &choices)?;
    Ok(Question::new(format!("السؤال: {}\nالإجابة:", row.text("question")?), owned(&choices), gold))
}

/// OALL's question of EXAMS: options in paragraphs of their own.
pub fn exams(row: &Fields<'_>) -> Read<Question> {
    let instruction = format!(
        "الأسئلة التالية هي أسئلة متعددة الإختيارات مع الجواب الصحيح حول {}. \n\n",
        row.text("subject")?.replace('_', " ")
    );
    let options = four(row)?;
    let lines: Vec<String> =
        options.iter().zip(ARABIC_LETTERS).map(|(option, letter)| format!(" {letter}) {option}\n")).collect();
    let text = format!("{instruction}السؤال: {}\n{}\nالإجابة:", row.text("question")?, lines.join("\n"));
    let gold = letter(row, "answer")?;
    Ok(Question::new(text, owned(&ARABIC_LETTERS[..4]), gold).with_instruction(instruction))
}

/// OALL's question of the translated MMLU, with the subject in the instruction.
pub fn mmlu_with_subject(row: &Fields<'_>) -> Read<Question> {
    let instruction = format!(
        "الأسئلة التالية هي أسئلة متعددة الإختيارات مع الجواب الصحيح حول {}. \n\n",
        row.text("subject")?.replace('_', " ")
    );
    lettered(row, instruction, "question", "answer")
}

/// A question with options أ to د from the cells A to D.
pub fn lettered(row: &Fields<'_>, instruction: String, question: &str, answer: &str) -> Read<Question> {
    let mut text = format!("{instruction}{}\n", row.text(question)?);
    for (option, letter) in four(row)?.iter().zip(ARABIC_LETTERS) {
        text.push_str(&format!("{letter}. {option}\n"));
    }
    text.push_str("الإجابة:");
    let gold = letter(row, answer)?;
    Ok(Question::new(text, owned(&ARABIC_LETTERS[..4]), gold).with_instruction(instruction))
}

/// The question of boolq, whose lines are indented.
pub fn boolq(row: &Fields<'_>, indent: &str) -> Read<Question> {
    let instruction = "بناء على المقطع التالي، أجب عن السؤال ب نعم أو لا";
    let text = lines(
        instruction,
        &["المقطع :", &row.text("passage")?, "السؤال:", &row.text("question")?, "الإجابة:", ""],
        indent,
    );
    let gold = usize::from(!row.flag("answer")?);
    Ok(Question::new(text, owned(&["نعم", "لا"]), gold).with_instruction(instruction))
}

/// Lines after an instruction, each behind an indent.
fn lines(instruction: &str, lines: &[&str], indent: &str) -> String {
    lines.iter().fold(instruction.to_owned(), |text, line| text + "\n" + indent + line)
}

/// The question of copa.
pub fn copa(row: &Fields<'_>) -> Read<Question> {
    let choices = vec![row.text("choice1")?, row.text("choice2")?];
    let link = ["لأن", "لذلك"][row.one_of("question", &["cause", "effect"])?];
    let text = format!("{}، {link} :\n0) {}\n1) {}\nالإجابة:", row.text("premise")?, choices[0], choices[1]);
    let gold = row.within("label", row.index("label")?, 2)?;
    Ok(Question::new(text, choices, gold).with_instruction(""))
}

/// The question of hellaswag on OALL's data, whose lines are indented.
pub fn hellaswag(row: &Fields<'_>, indent: &str) -> Read<Question> {
    use crate::data::python::without_brackets;
    let instruction = "بناء على السياق التالي، اختر النهاية الصحيحة من الاقتراحات التالية";
    let endings: Vec<String> = row.list("endings")?.iter().map(|ending| without_brackets(ending)).collect();
    let context = without_brackets(&row.text("ctx")?);
    // Of the last two lines, one is empty without an indent and one is an indent only, which the first ending follows.
    let mut text = lines(instruction, &["السياق:", &context, "الاقتراحات:"], indent) + "\n\n" + indent;
    for (number, ending) in endings.iter().enumerate() {
        text.push_str(&format!("{number}) {ending}\n"));
    }
    text.push_str("الإجابة:");
    let gold = row.within("label", row.index("label")?, endings.len())?;
    Ok(Question::new(text, endings, gold).with_instruction(instruction))
}

/// The question of toxigen, whose lines are indented.
pub fn toxigen(row: &Fields<'_>, indent: &str) -> Read<Question> {
    let instruction = "هل العبارة التالية تحض على الكراهية؟ قم بالرد بـ\"نعم\" أو \"لا\".";
    let quoted = format!("'{}'", row.text("text")?);
    let text = lines(instruction, &["العبارة:", &quoted, "الإجابة:", ""], indent);
    let gold = usize::from(row.number("toxicity_ai")? + row.number("toxicity_human")? > 5.5);
    Ok(Question::new(text, owned(&["لا", "نعم"]), gold).with_instruction(instruction))
}

/// The question of sciq, whose choices the harnesses shuffle.
pub fn sciq(row: &Fields<'_>, with_options: bool) -> Read<Question> {
    let instruction = "بناءً على السياق أدناه، اختر الإجابة الصحيحة للسؤال التالي من قائمة الاقتراحات";
    let right = row.text("correct_answer")?;
    let wrong = [row.text("distractor1")?, row.text("distractor2")?, row.text("distractor3")?];
    let (support, question) = (row.printed("support")?, row.text("question")?);
    let choices = row.ordered(wrong.into_iter().chain([right.clone()]).collect());
    let gold = choices.iter().position(|choice| *choice == right).unwrap_or_default();
    let indent = "    ";
    let mut text = lines(instruction, &["السياق:", &support, "السؤال:", &question, "الإجابات المحتملة:"], indent)
        + "\n\n"
        + indent;
    if with_options {
        for (number, choice) in choices.iter().enumerate() {
            text.push_str(&format!("{number}) {choice}\n"));
        }
        text.push_str("الإجابة:");
    }
    Ok(Question::new(text, choices, gold).with_instruction(instruction))
}
