package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v3"
)

// MaxBytes of a text that is read. Together with the other bounds it keeps what a text may cost below some 200 MB, also for a hostile text; real
// configurations stay a hundred times below.
const MaxBytes = 1 << 20

const (
	maxNodes    = 200_000 // a configuration with 3,000 complete routes has as many
	maxDepth    = 50
	maxItems    = 10_000 // of a list
	maxProblems = 100
)

// Document is a text that was read, for finding places in it again. The nil Document knows no places.
type Document struct {
	file  string
	lines []string
	root  *yaml.Node
	// broken are the paths of what could not be decoded.
	broken []string

	problems Problems
	full     bool // of problems: no more are looked for
	nodes    int  // so far
}

// Add appends a problem with the place of its Path, or of the nearest field around it. It is for rules that look at the decoded value:
// what only follows from a field that could not be decoded is not added.
func (d *Document) Add(ps Problems, p Problem) Problems {
	switch {
	case d == nil:
		return append(ps, p)
	case d.full:
		return ps
	case len(ps) == maxProblems:
		d.full = true
		return append(ps, d.tooMany())
	}
	for _, b := range d.broken {
		if under(p.Path, b) {
			return ps
		}
	}
	return append(ps, d.at(d.place(p.Path), p))
}

// Position of the field at a path, or of the nearest field around it. It is 0, 0 for what was not read.
func (d *Document) Position(path string) (line, column int) {
	if d == nil || d.root == nil {
		return 0, 0
	}
	n := d.place(path)
	return n.Line, n.Column
}

func (d *Document) place(path string) *yaml.Node {
	key, value := d.find(path)
	if key != nil && value.Kind != yaml.ScalarNode {
		return key // "listeners:" says better where a list is than its first element, a line below
	}
	return value
}

// Broken says whether something at or below path could not be decoded, so that a rule that needs all of it can keep silent.
func (d *Document) Broken(path string) bool {
	return d != nil && slices.ContainsFunc(d.broken, func(b string) bool { return under(b, path) })
}

// under says whether path is ancestor itself, or inside it.
func under(path, ancestor string) bool {
	rest, ok := strings.CutPrefix(path, ancestor)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[' || ancestor == "")
}

func (d *Document) at(n *yaml.Node, p Problem) Problem {
	p.File, p.Line, p.Column = d.file, 1, 1
	if n != nil && n.Line > 0 {
		p.Line, p.Column = n.Line, max(1, n.Column)
	}
	if p.Line <= len(d.lines) {
		p.source = d.lines[p.Line-1]
	}
	return p
}

// report is for problems of decoding.
func (d *Document) report(n *yaml.Node, p Problem) {
	switch {
	case d.full:
	case len(d.problems) == maxProblems:
		d.full = true
		d.problems = append(d.problems, d.tooMany())
	default:
		d.problems = append(d.problems, d.at(n, p))
	}
}

func (d *Document) tooMany() Problem {
	return Problem{File: d.file, Message: fmt.Sprintf("there are more than %d problems; the rest is not shown", maxProblems), last: 1}
}

// breaks notes that what is at path was not decoded.
func (d *Document) breaks(path string) {
	if !d.full {
		d.broken = append(d.broken, path)
	}
}

// find walks down a path, whose names have neither dots nor brackets, as far as it can. key is nil at the root and for elements of lists.
func (d *Document) find(path string) (key, value *yaml.Node) {
	value = d.root
	for rest := path; rest != "" && value != nil; {
		rest = strings.TrimPrefix(rest, ".")
		end := strings.IndexAny(rest[min(1, len(rest)):], ".[")
		element := rest
		if end >= 0 {
			element = rest[:end+1]
		}
		rest = rest[len(element):]
		k, v := child(value, element)
		if v == nil {
			break
		}
		key, value = k, v
	}
	return key, value
}

func child(n *yaml.Node, element string) (key, value *yaml.Node) {
	if n.Kind == yaml.SequenceNode {
		if i, err := strconv.Atoi(strings.Trim(element, "[]")); err == nil && i >= 0 && i < len(n.Content) {
			return nil, n.Content[i]
		}
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == element {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

// parse reads the text into nodes and refuses what no configuration needs. root stays nil when there is nothing to decode.
func (d *Document) parse(text []byte) {
	if len(text) > MaxBytes {
		d.report(nil, Problem{Message: "the file is too long", Expected: fmt.Sprintf("at most %d bytes", MaxBytes)})
		return
	}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // a byte order mark
	d.lines = strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	for i, line := range d.lines {
		if bad, characters := notUTF8(line); bad >= 0 {
			d.report(&yaml.Node{Line: i + 1, Column: characters + 1}, Problem{Message: fmt.Sprintf("the byte 0x%02x is not valid UTF-8", line[bad])})
			return
		}
	}
	documents, err := nodes(text)
	if err != nil {
		d.syntax(err)
		return
	}
	if len(documents) > 1 {
		d.report(documents[1], Problem{Message: "a second document starts here", Expected: "one document in a file"})
		return
	}
	if len(documents) == 0 || len(documents[0].Content) == 0 {
		d.report(nil, Problem{Message: "the file is empty"})
		return
	}
	root := documents[0].Content[0]
	if n := d.refused(root, 0); n == nil {
		d.root = root
	}
}

// notUTF8 finds the first byte that is not valid, or -1, and counts the characters before it.
func notUTF8(line string) (bad, characters int) {
	for i, r := range line {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(line[i:]); n == 1 {
				return i, characters
			}
		}
		characters++
	}
	return -1, characters
}

// nodes are up to two documents. Parsers of YAML have panicked before; a configuration is not worth it.
func nodes(text []byte) (documents []*yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the parser failed: %v", p)
		}
	}()
	for dec := yaml.NewDecoder(bytes.NewReader(text)); len(documents) < 2; {
		var n yaml.Node
		if err := dec.Decode(&n); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		documents = append(documents, &n)
	}
	return documents, nil
}

var (
	yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:unmarshal errors:\s*)?(?:line (\d+): )?`)
	// fromZero are the messages, those of the parser and not of the scanner below it, with which the library counts lines from 0.
	fromZero = regexp.MustCompile(`^did not find expected (',' or|'-' indicator|key$|node content|<)`)
)

func (d *Document) syntax(err error) {
	message, line, column := err.Error(), 1, 1
	if m := yamlLine.FindStringSubmatch(message); m[0] != "" {
		message = message[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			if fromZero.MatchString(message) {
				n++
			}
			line = min(n, len(d.lines))
		}
	}
	p := Problem{Message: "not YAML: " + message}
	if strings.Contains(message, "tab character") { // it is somewhere behind the beginning of what has it, which is where the library says that it is
		for i, text := range d.lines[line-1:] {
			if spaces := len(text) - len(strings.TrimLeft(text, " ")); strings.HasPrefix(text[spaces:], "\t") {
				line, column = line+i, spaces+1
				p.Hint = "YAML is indented by spaces, not by tabs"
				break
			}
		}
	}
	d.report(&yaml.Node{Line: line, Column: column}, p)
}

// refused reports the first node that is too deep, is an alias or has an anchor or a tag, and gives it. Aliases are how a small text becomes a
// huge one; a configuration has no use for the others.
func (d *Document) refused(n *yaml.Node, depth int) *yaml.Node {
	d.nodes++
	switch {
	case d.nodes > maxNodes:
		d.report(n, Problem{Message: fmt.Sprintf("there are more than %d values", maxNodes)})
		return n
	case depth > maxDepth:
		d.report(n, Problem{Message: fmt.Sprintf("fields lie more than %d levels deep in one another", maxDepth)})
		return n
	case n.Kind == yaml.AliasNode, n.Anchor != "":
		d.report(n, Problem{Message: "aliases and anchors of YAML are not read here", Hint: "write the value out"})
		return n
	case n.Style&yaml.TaggedStyle != 0:
		d.report(n, Problem{Message: fmt.Sprintf("the tag %s is not read here", Quote(n.Tag)), Hint: "leave it away"})
		return n
	}
	for _, c := range n.Content {
		if bad := d.refused(c, depth+1); bad != nil {
			return bad
		}
	}
	return nil
}
