package manifest

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Severity says what a Problem means for the manifest.
type Severity string

// The severities. A manifest with an error is refused.
const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
	SeverityNote    Severity = "note"
)

// Problem is one thing that is wrong with a manifest, and where.
//
// +kubebuilder:object:generate=false
type Problem struct {
	Severity Severity `json:"severity"`
	// Code is stable; Explain has more to say about it.
	Code Code   `json:"code"`
	File string `json:"file,omitempty"`
	// Line and Column count from 1, lines as YAML does (a few rare characters end one too), columns in characters. They are 0
	// when the manifest was not read from text.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
	// Path of the field inside the manifest, say spec.vertices[1].sink.udsink.
	Path string `json:"path,omitempty"`
	// Message says what is wrong.
	Message string `json:"message"`
	// Expected says what would be right, when that can be said briefly.
	Expected string `json:"expected,omitempty"`
	// DidYouMean is what was probably meant.
	DidYouMean string `json:"didYouMean,omitempty"`
	// Hint says what to do.
	Hint string `json:"hint,omitempty"`
}

// String is the problem in one line: file:line:column: error LV1203: message.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
		if p.Line > 0 {
			fmt.Fprintf(&b, "%d:%d:", p.Line, p.Column)
		}
		b.WriteByte(' ')
	} else if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	fmt.Fprintf(&b, "%s %s: %s", p.Severity, p.Code, p.Message)
	return b.String()
}

// Problems are everything that is wrong.
//
// +kubebuilder:object:generate=false
type Problems []Problem

// HasErrors says whether the manifests must be refused.
func (ps Problems) HasErrors() bool {
	return slices.ContainsFunc(ps, func(p Problem) bool { return p.Severity == SeverityError })
}

// Err is nil when there is no error among the problems, and otherwise an error that lists them, a line each.
func (ps Problems) Err() error {
	var lines []string
	for _, p := range ps {
		if p.Severity == SeverityError {
			lines = append(lines, p.String())
		}
	}
	if lines == nil {
		return nil
	}
	return errors.New(strings.Join(lines, "\n"))
}

// Sort puts the problems into the order of the text they are about.
func (ps Problems) Sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(a.File, b.File),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Code, b.Code),
			cmp.Compare(a.Path, b.Path),
			cmp.Compare(a.Message, b.Message),
		)
	})
}

// path of a field. A path is data, not syntax: dots in a key are kept apart by the brackets around it.
type path string

func (p path) at(field string) path {
	if p == "" {
		return path(field)
	}
	return p + "." + path(field)
}

func (p path) item(i int) path { return p + path(fmt.Sprintf("[%d]", i)) }

func (p path) key(k string) path { return p + path("["+k+"]") }

// parent is the path without its last element.
func (p path) parent() path {
	s := string(p)
	if strings.HasSuffix(s, "]") {
		return path(s[:strings.LastIndexByte(s, '[')])
	}
	return path(s[:max(0, strings.LastIndexByte(s, '.'))])
}

// under says whether p is ancestor itself, or inside it.
func (p path) under(ancestor path) bool {
	rest, ok := strings.CutPrefix(string(p), string(ancestor))
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[' || ancestor == "")
}

// report collects what rules find about one object.
type report struct {
	object   Object
	problems Problems
}

// add takes a problem without severity and position, which come from the catalogue and the object.
func (r *report) add(at path, p Problem) {
	if r.followsFromDecoding(at, false) {
		return
	}
	r.append(at, p)
}

// missing is add for a field that should be there. Such a finding says nothing when a field beside it could not be read:
// that one is probably the field that is missing here.
func (r *report) missing(at path, p Problem) {
	if r.followsFromDecoding(at, true) {
		return
	}
	r.append(at, p)
}

// required reports that a field is not set.
func (r *report) required(at path, expected string) {
	r.missing(at, Problem{Code: CodeRequired, Message: fmt.Sprintf("%s is missing in %s", at.last(), at.parent().last()), Expected: expected})
}

// maxProblems of one document are enough for anybody, and keep a hostile document from costing its square.
const maxProblems = 500

// full says that nothing more will be reported, so that finding more is not worth the time.
func (r *report) full() bool { return len(r.problems) >= maxProblems }

// suggest is what was probably meant by word. It is where most of the time would go in a hostile document.
func (r *report) suggest(word string, candidates []string) string {
	if r.full() {
		return ""
	}
	return suggest(word, candidates)
}

func (r *report) append(at path, p Problem) {
	if r.full() {
		return
	}
	if len(r.problems) == maxProblems-1 {
		at, p = "", Problem{Code: CodeTooManyProblems, Message: fmt.Sprintf("the document has more than %d problems; the rest is not shown", maxProblems-1)}
	}
	p.Path = string(at)
	p.Severity = cmp.Or(p.Severity, p.Code.severity())
	p.File, p.Line, p.Column = r.object.locator.position(at)
	r.problems = append(r.problems, p)
}

func (r *report) followsFromDecoding(at path, missing bool) bool {
	for _, broken := range r.object.broken {
		if at.under(broken) || missing && (at.parent() == broken.parent() || at == broken.parent()) {
			return true
		}
	}
	return false
}

// last is the last named element of the path with its index, for messages: vertices[1].
func (p path) last() string {
	inBrackets := false
	for i := len(p) - 1; i >= 0; i-- {
		switch {
		case p[i] == ']':
			inBrackets = true
		case p[i] == '[':
			inBrackets = false
		case p[i] == '.' && !inBrackets:
			return string(p[i+1:])
		}
	}
	return cmp.Or(string(p), "the manifest")
}
