/** Files, writing tools, reading aloud and dictation, in Arabic. */
import type { Task } from '../data/writing';
import type { DocumentFault } from '../text/documents';

export const composerAr = {
  attachments: {
    add: 'إضافة ملف',
    remove: 'إزالة الملف',
    drop: 'أفلت الملف هنا ليُقرأ نصه، أو نموذجًا ليعمل',
    reading: 'يُقرأ الملف…',
    cut: 'أُخذ أول الملف «{name}» وحده: باقيه أطول مما يُقرأ.',
    share: 'لم يتسع السياق للملف كله: قُرئ منه {percent}.',
    faults: {
      large: 'الملف «{name}» أكبر مما يُقرأ هنا (50 م.ب).',
      kind: 'لا يُقرأ «{name}»: تُقرأ ملفات النص وPDF وWord ‏(docx).',
      empty: 'لا نص في الملف «{name}».',
      scanned: 'صفحات «{name}» صور بلا نص. حوّلها إلى نص ببرنامج يتعرّف على الحروف ثم أعد المحاولة.',
      damaged: 'الملف «{name}» تالف ولا يمكن فتحه.',
      locked: 'الملف «{name}» محمي بكلمة مرور. أزلها ثم أعد المحاولة.',
    } as Record<DocumentFault, string>,
  },
  writing: {
    title: 'أدوات الكتابة',
    onText: 'على ما كتبتَ',
    onFile: 'على الملف',
    onAnswer: 'على آخر إجابة',
    nothing: 'اكتب نصًّا أو أضف ملفًّا أولًا.',
    tasks: {
      tashkeel: 'تشكيل',
      correct: 'تصحيح اللغة',
      fusha: 'إلى الفصحى',
      egyptian: 'إلى المصرية',
      levantine: 'إلى الشامية',
      gulf: 'إلى الخليجية',
      moroccan: 'إلى المغربية',
      summarise: 'تلخيص',
    } as Record<Task, string>,
  },
  letters: 'حرفًا',
  listen: 'قراءة بصوت عالٍ',
  stopListening: 'إيقاف القراءة',
  dictate: 'إملاء بالصوت',
  stopDictating: 'إيقاف الإملاء',
};
