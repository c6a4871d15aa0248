"""The programs that exports are for, each behind one function: `answer(folder, questions)`."""
