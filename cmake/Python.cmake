# stopgrad_ask_python(<variable> <what> <code>) sets <variable> to what the Python code prints,
# unless the user has set it. `what` names it in the message where Python does not know.
function(stopgrad_ask_python variable what code)
  if(DEFINED ${variable})
    return()
  endif()
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "${code}"
    OUTPUT_VARIABLE answer ERROR_VARIABLE error RESULT_VARIABLE failed
    OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed)
    message(FATAL_ERROR "${what} was not found: pip install pybind11, "
      "or pass -D${variable}=...\n${error}")
  endif()
  set(${variable} "${answer}" PARENT_SCOPE)
endfunction()
