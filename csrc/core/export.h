#ifndef STOPGRAD_CORE_EXPORT_H_
#define STOPGRAD_CORE_EXPORT_H_

// Marks the few functions that the TensorFlow and Python adapters call. Everything else in the
// kernel library is hidden.
#define STOPGRAD_EXPORT __attribute__((visibility("default")))

#endif  // STOPGRAD_CORE_EXPORT_H_
