package manifest

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v3"
)

// template is an action of Go's templates as Helm charts have them.
var template = regexp.MustCompile(`\{\{-?\s*(/\*|\$|\.(Values|Release|Chart|Files|Capabilities|Template)\b|\.\s*[-}|]|(include|template|define|block|range|with|if|else|end|toYaml|tpl|required|default|quote|printf|lookup)\b)`)

// templateLine finds the first action that a template engine should have replaced; line is 0 if there is none. Comments do not count.
func templateLine(text []byte) (line, column int, action string) {
	n := 0
	for line := range bytes.Lines(text) {
		n++
		code := line
		if i := bytes.Index(line, []byte(" #")); i >= 0 {
			code = line[:i]
		}
		if bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			continue
		}
		if at := template.FindIndex(code); at != nil {
			end := bytes.Index(code[at[0]:], []byte("}}"))
			action := code[at[0]:]
			if end >= 0 {
				action = code[at[0] : at[0]+end+2]
			}
			return n, utf8.RuneCount(code[:at[0]]) + 1, strings.TrimSpace(string(action))
		}
	}
	return 0, 0, ""
}

// hasTemplateKey reports whether a document has an object as the name of a field, which is what YAML makes of {{ .Values.name }}.
func hasTemplateKey(n *yaml.Node) bool {
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && c.Kind == yaml.MappingNode || hasTemplateKey(c) {
			return true
		}
	}
	return false
}

// notRendered reports a template that was not rendered. It reports only that: whatever else is wrong with such a text follows from it.
func (d *decoder) notRendered(doc yamlDocument) bool {
	line, column, action := templateLine(doc.text)
	if line == 0 {
		return false
	}
	d.problems = append(d.problems, Problem{
		Severity: CodeSyntax.severity(), Code: CodeSyntax, File: d.file, Line: doc.line + line, Column: column,
		Message: "this is a template that was not rendered: " + quote(action), Hint: "render it first: helm template CHART | levada validate -",
	})
	return true
}

// parserCountsFromZero are the messages of the YAML parser, not of its scanner, whose lines begin with 0.
var parserCountsFromZero = regexp.MustCompile(`^did not find expected (',' or|'-' indicator|key$|node content|<)`)

// yamlSyntax reports why a document is not YAML, at the line where the mistake is. The library often names the line where the broken block begins.
func (d *decoder) yamlSyntax(doc yamlDocument, err error) {
	if d.notRendered(doc) {
		return
	}
	message, line, column, hint := err.Error(), 1, 1, ""
	lines := strings.Split(strings.ReplaceAll(string(doc.text), "\r\n", "\n"), "\n")
	if m := yamlLine.FindStringSubmatch(message); m[0] != "" {
		message = message[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
			if parserCountsFromZero.MatchString(message) {
				line++
			}
			line = min(max(line, 1), len(lines))
			for line > 1 && strings.TrimSpace(lines[line-1]) == "" {
				line-- // the end of the text, where something was missed
			}
		}
	}
	switch at, width := misplaced(lines); {
	case tabbed(lines) > 0:
		line = tabbed(lines)
		column, hint = len(lines[line-1])-len(strings.TrimLeft(lines[line-1], " "))+1, "indent with spaces: YAML allows no tabs"
	case strings.HasPrefix(message, "did not find expected") && at > 0:
		line, column = at, width+1
		hint = "the line is indented by " + spaces(width) + ", which is not a level of the lines above; indent it like the fields that it belongs to"
	case strings.Contains(message, "mapping values are not allowed"):
		hint = "a value that contains ': ' needs quotes, and a field needs a line of its own"
	case strings.Contains(message, "did not find expected ',' or"):
		hint = "a bracket that was opened is not closed, or a comma is missing"
	case strings.Contains(message, "unexpected end of stream"):
		hint = "a quote that was opened is not closed"
	}
	d.problems = append(d.problems, Problem{
		Severity: CodeSyntax.severity(), Code: CodeSyntax, File: d.file, Line: doc.line + line, Column: column, Message: "not YAML: " + message, Hint: hint,
	})
}

func spaces(n int) string {
	if n == 1 {
		return "1 space"
	}
	return strconv.Itoa(n) + " spaces"
}

// tabbed is the first line that is indented with a tab; 0 if there is none.
func tabbed(lines []string) int {
	for i, l := range lines {
		if strings.HasPrefix(strings.TrimLeft(l, " "), "\t") && strings.TrimSpace(l) != "" {
			return i + 1
		}
	}
	return 0
}

var (
	blockScalar = regexp.MustCompile(`[:\-]\s*[|>][-+0-9]*\s*(#.*)?$`)
	fieldLine   = regexp.MustCompile(`^(- +)*("[^"]*"|'[^']*'|[^\s#{\[&*!|>'"%@,][^#{\[]*?):(\s|$)`)
)

// misplaced finds the first line of a block mapping whose indentation is none that the lines above have opened. It returns its number and its
// indentation; 0 if there is none, or if brackets make the levels unknown.
func misplaced(lines []string) (line, width int) {
	levels := []int{}
	scalar := -1 // lines deeper than this belong to a block scalar
	open := 0    // brackets
	for i, l := range lines {
		text := strings.TrimSpace(l)
		if text == "" || strings.HasPrefix(text, "#") || strings.HasPrefix(text, "---") {
			continue
		}
		indent := len(l) - len(strings.TrimLeft(l, " "))
		if scalar >= 0 {
			if indent > scalar {
				continue
			}
			scalar = -1
		}
		if open > 0 {
			open += strings.Count(text, "{") + strings.Count(text, "[") - strings.Count(text, "}") - strings.Count(text, "]")
			continue
		}
		deeper := len(levels) == 0 || indent > levels[len(levels)-1]
		for len(levels) > 0 && levels[len(levels)-1] > indent {
			levels = levels[:len(levels)-1]
		}
		if !deeper && (len(levels) == 0 || levels[len(levels)-1] != indent) {
			return i + 1, indent
		}
		if deeper {
			levels = append(levels, indent)
		}
		for rest := l[indent:]; strings.HasPrefix(rest, "- "); { // each dash opens the level of what follows it
			n := len(rest) - len(strings.TrimLeft(rest[1:], " "))
			indent += n
			rest = rest[n:]
			levels = append(levels, indent)
		}
		if blockScalar.MatchString(l) {
			scalar = len(l) - len(strings.TrimLeft(l, " "))
		} else if fieldLine.MatchString(l[len(l)-len(strings.TrimLeft(l, " ")):]) || strings.ContainsAny(text, "{[") {
			open += strings.Count(text, "{") + strings.Count(text, "[") - strings.Count(text, "}") - strings.Count(text, "]")
			open = max(open, 0)
		}
	}
	return 0, 0
}

// missingMarker reports that a second manifest begins in a document, once, and not that all its fields are there twice.
func (d *decoder) missingMarker(problems Problems) Problems {
	at := map[string]int{}
	for i := range problems {
		if name := problems[i].Path; problems[i].Code == CodeDuplicateField && at[name] == 0 {
			at[name] = i + 1
		}
	}
	if at["apiVersion"] == 0 || at["kind"] == 0 {
		return problems
	}
	p := problems[min(at["apiVersion"], at["kind"])-1]
	p.Message, p.Hint = "a second manifest begins here, and no line '---' is before it", "put '---' on a line of its own before it"
	kept := Problems{p}
	for _, q := range problems {
		if q.Code != CodeDuplicateField || strings.ContainsAny(q.Path, ".[") {
			kept = append(kept, q)
		}
	}
	return kept
}
