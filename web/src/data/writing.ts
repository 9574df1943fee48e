/** One-press tasks on an Arabic text. The instructions are Arabic in every language of the page. */
export const TASKS = [
  'tashkeel',
  'correct',
  'fusha',
  'egyptian',
  'levantine',
  'gulf',
  'moroccan',
  'summarise',
] as const;
export type Task = (typeof TASKS)[number];

const dialect = (name: string) => `اكتب {what} باللهجة ${name}، واحفظ المعنى، واكتب النتيجة وحدها.`;

const INSTRUCTIONS: Record<Task, string> = {
  tashkeel: 'شكّل {what} تشكيلًا كاملًا دون أن تغيّر كلماته، واكتب النص المشكول وحده.',
  correct: 'صحّح الأخطاء الإملائية والنحوية في {what}، واكتب النص المصحَّح وحده.',
  fusha: 'اكتب {what} بالعربية الفصحى، واحفظ المعنى، واكتب النتيجة وحدها.',
  egyptian: dialect('المصرية'),
  levantine: dialect('الشامية'),
  gulf: dialect('الخليجية'),
  moroccan: dialect('المغربية'),
  summarise: 'لخّص {what} في نقاط قصيرة.',
};

/** The message that asks for a task on `text`, or on the files of the message where there is no text. */
export function instruction(task: Task, text: string): string {
  if (text.trim() === '') return INSTRUCTIONS[task].replace('{what}', 'نص الملف');
  return `${INSTRUCTIONS[task].replace('{what}', 'النص الآتي').replace(/\.$/, ':')}\n\n${text.trim()}`;
}
