/** Files, writing tools, reading aloud and dictation, in English. */
import type { composerAr } from './composer-ar';

export const composerEn: typeof composerAr = {
  attachments: {
    add: 'Add a file',
    remove: 'Remove the file',
    drop: 'Drop a file here to have its text read, or a model to run it',
    reading: 'Reading the file…',
    cut: 'Only the beginning of “{name}” was taken: the rest is longer than what is read.',
    share: 'The context did not hold the whole file: {percent} of it were read.',
    faults: {
      large: '“{name}” is larger than what is read here (50 MB).',
      kind: '“{name}” cannot be read: text, PDF and Word (docx) can.',
      empty: 'There is no text in “{name}”.',
      scanned: 'The pages of “{name}” are images without text. Recognize their letters with another program first.',
      damaged: '“{name}” is damaged and cannot be opened.',
      locked: '“{name}” is protected by a password. Remove it and try again.',
    },
  },
  writing: {
    title: 'Writing tools',
    onText: 'On what you wrote',
    onFile: 'On the file',
    onAnswer: 'On the last answer',
    nothing: 'Write a text or add a file first.',
    tasks: {
      tashkeel: 'Add tashkeel',
      correct: 'Correct the Arabic',
      fusha: 'To fusha',
      egyptian: 'To Egyptian',
      levantine: 'To Levantine',
      gulf: 'To Gulf Arabic',
      moroccan: 'To Moroccan',
      summarise: 'Summarise',
    },
  },
  letters: 'letters',
  listen: 'Read aloud',
  stopListening: 'Stop reading',
  dictate: 'Dictate',
  stopDictating: 'Stop dictating',
};
