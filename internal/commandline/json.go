package commandline

import (
	"encoding/json"
	"io"
)

// WriteJSON prints a value as JSON, as -o json does: in one line, which programs read line by line, or indented for people. Characters such as
// < and & stay as they are: the output is no HTML.
func WriteJSON(w io.Writer, indent bool, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if indent {
		e.SetIndent("", "  ")
	}
	return e.Encode(v)
}
