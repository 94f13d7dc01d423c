// Package strictyaml decodes a configuration file into a struct and reports everything that is wrong with it at once, each with its place: unknown
// fields with what was probably meant, fields that are there twice, values of the wrong type, empty values. What costs more to read than it is
// long (aliases) is refused.
//
// Manifests (api/v1alpha1) are decoded by a decoder of their own: it does what the Kubernetes API server does, by way of JSON, with aliases,
// several documents and catalogued codes, and users import it, so that it can import nothing from here. A configuration file wants the
// opposite of nearly all of that, and what remains the same is small.
package strictyaml

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	yaml "go.yaml.in/yaml/v3"
)

// Defaulter is a struct that has defaults. Decode calls it on each new one, an element of a list or what a pointer points to, before its fields
// are read; the outermost value is the caller's.
type Defaulter interface{ SetDefaults() }

// A type with an UnmarshalText of its own is read from a scalar's text. It may say what it takes:
type expecter interface{ Expected() string }

// Decode reads a text into v, a pointer to a struct whose fields have yaml tags. It takes structs, pointers to them, slices, text, bool, int, float64,
// time.Duration (as Go writes them) and encoding.TextUnmarshaler; other types panic, because they are a mistake of the program. A field that the
// text does not name stays as it is. A tag declares the form that a text must have: expected:"host:port".
//
// What can be read is read even when there are problems, so that v can be looked at further; Add knows what to leave out then. A null is a
// problem everywhere: "tls:" with everything behind it forgotten must not mean that there is no TLS.
func Decode(filename string, text []byte, v any) (*Document, Problems) {
	d := &Document{file: filename}
	d.parse(text)
	if d.root != nil {
		d.value(d.root, reflect.ValueOf(v).Elem(), "")
	} else {
		d.breaks("")
	}
	return d, d.problems
}

var (
	durationType    = reflect.TypeFor[time.Duration]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func (d *Document) value(n *yaml.Node, v reflect.Value, path string) {
	t := v.Type()
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		d.wrong(n, path, Problem{Message: "is empty", Expected: expected(t), Hint: emptyHint(t)})
		return
	}
	switch {
	case t.Kind() == reflect.Pointer:
		v.Set(fresh(t.Elem()))
		d.value(n, v.Elem(), path)
	case t == durationType, reflect.PointerTo(t).Implements(textUnmarshaler):
		d.scalar(n, v, path)
	case t.Kind() == reflect.Struct:
		d.object(n, v, path)
	case t.Kind() == reflect.Slice:
		d.list(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

func fresh(t reflect.Type) reflect.Value {
	v := reflect.New(t)
	if def, ok := v.Interface().(Defaulter); ok {
		def.SetDefaults()
	}
	return v
}

func (d *Document) list(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		p := Problem{Message: "is " + describe(n), Expected: "a list"}
		if n.Kind == yaml.MappingNode {
			p.Hint = "put '- ' in front of the first field"
		}
		d.wrong(n, path, p)
		return
	}
	if len(n.Content) > maxItems {
		d.wrong(n, path, Problem{Message: fmt.Sprintf("has %d elements", len(n.Content)), Expected: fmt.Sprintf("at most %d", maxItems)})
		return
	}
	items := reflect.MakeSlice(v.Type(), 0, len(n.Content))
	for i, c := range n.Content {
		item := fresh(v.Type().Elem()).Elem()
		d.value(c, item, fmt.Sprintf("%s[%d]", path, i))
		items = reflect.Append(items, item)
	}
	v.Set(items)
}

func (d *Document) object(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.wrong(n, path, Problem{Message: "is " + describe(n), Expected: "fields: " + strings.Join(names(v.Type()), ", ")})
		return
	}
	fields := Fields(v.Type())
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			d.report(key, Problem{Path: path, Message: "the name of a field is " + describe(key), Expected: "a text"})
			continue
		}
		name := key.Value
		at := strings.TrimPrefix(path+"."+name, ".")
		if first := seen[name]; first > 0 {
			d.report(key, Problem{Path: at, Message: fmt.Sprintf("is there twice; the first is in line %d", first), Hint: "keep one of them"})
			continue
		}
		seen[name] = key.Line
		index, known := fields[name]
		if !known {
			d.unknown(key, path, names(v.Type()))
			continue
		}
		before := len(d.problems)
		d.value(value, v.Field(index), at)
		if e := v.Type().Field(index).Tag.Get("expected"); e != "" && len(d.problems) > before && !d.full {
			p := &d.problems[before]
			if p.Expected = e; p.Hint == inQuotes {
				p.Hint = "" // it would still be wrong
			}
		}
	}
}

const inQuotes = "put it in quotes"

func (d *Document) unknown(key *yaml.Node, path string, known []string) {
	at := Quote(key.Value)
	if isName(key.Value) {
		at = key.Value
	}
	p := Problem{Path: strings.TrimPrefix(path+"."+at, "."), Message: "there is no such field"}
	if !d.full {
		p.DidYouMean = Suggest(key.Value, known)
	}
	if p.DidYouMean == "" {
		p.Expected = "one of " + strings.Join(known, ", ")
	} else {
		// It is probably this field that was written here, so nobody wants to hear that it is missing.
		d.breaks(strings.TrimPrefix(path+"."+p.DidYouMean, "."))
	}
	d.report(key, p)
}

func isName(s string) bool {
	return s != "" && len(s) <= 60 && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}) < 0
}

// wrong reports a value that cannot be decoded.
func (d *Document) wrong(n *yaml.Node, path string, p Problem) {
	p.Path = path
	if path == "" {
		p.Message = "the configuration " + p.Message
	}
	d.report(n, p)
	d.breaks(path)
}

// Fields are the positions of a struct's fields by their names in YAML. A field without a tag is not in the file.
func Fields(t reflect.Type) map[string]int {
	fields := map[string]int{}
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name != "" && name != "-" {
			fields[name] = i
		}
	}
	return fields
}

// names of the fields in the order of their declaration.
func names(t reflect.Type) []string {
	fields := Fields(t)
	list := make([]string, 0, len(fields))
	for name := range fields {
		list = append(list, name)
	}
	slices.SortFunc(list, func(a, b string) int { return fields[a] - fields[b] })
	return list
}

func (d *Document) scalar(n *yaml.Node, v reflect.Value, path string) {
	p := Problem{Message: "is " + describe(n), Expected: expected(v.Type())}
	if n.Kind == yaml.ScalarNode && decodeScalar(n, v, &p) {
		return
	}
	d.wrong(n, path, p)
}

// decodeScalar sets v, or completes the problem.
func decodeScalar(n *yaml.Node, v reflect.Value, p *Problem) bool {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		old := reflect.ValueOf(v.Interface())
		err := u.UnmarshalText([]byte(n.Value))
		if err == nil {
			return true
		}
		v.Set(old)
		if unknown, ok := errors.AsType[UnknownName](err); ok {
			p.Message = unknown.Error()
			p.DidYouMean = Suggest(unknown.Name, unknown.Known)
		}
		return false
	}
	switch {
	case v.Type() == durationType:
		value, err := time.ParseDuration(n.Value)
		if err != nil {
			if _, err := strconv.Atoi(n.Value); err == nil {
				p.DidYouMean = n.Value + "s"
			}
			return false
		}
		v.SetInt(int64(value))
	case v.Kind() == reflect.String:
		if n.Tag != "!!str" {
			p.Hint = inQuotes
			return false
		}
		v.SetString(n.Value)
	case v.Kind() == reflect.Bool:
		value, ok := map[string]bool{"true": true, "false": false}[n.Value]
		if !ok || n.Tag != "!!bool" {
			p.DidYouMean = map[string]string{"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}[strings.ToLower(n.Value)]
			return false
		}
		v.SetBool(value)
	case v.Kind() == reflect.Int:
		value, err := strconv.Atoi(n.Value)
		if err != nil || n.Tag != "!!int" {
			if err == nil {
				p.Hint = "leave the quotes away"
			}
			return false
		}
		v.SetInt(int64(value))
	case v.Kind() == reflect.Float64:
		value, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || math.IsInf(value, 0) || math.IsNaN(value) || n.Tag != "!!int" && n.Tag != "!!float" {
			if percent, ok := strings.CutSuffix(n.Value, "%"); ok {
				if share, err := strconv.ParseFloat(percent, 64); err == nil {
					p.DidYouMean = strconv.FormatFloat(share/100, 'g', 6, 64)
				}
			}
			return false
		}
		v.SetFloat(value)
	default:
		panic(fmt.Sprintf("strictyaml: a field has the type %s, which cannot be decoded", v.Type()))
	}
	return true
}

// expected says what may stand in a field of a type.
func expected(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if e, ok := reflect.Zero(t).Interface().(expecter); ok {
		return e.Expected()
	}
	switch {
	case t == durationType:
		return "a duration such as 500ms, 10s or 1h30m"
	case t.Kind() == reflect.String:
		return "a text"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int:
		return "a whole number"
	case t.Kind() == reflect.Float64:
		return "a number"
	case t.Kind() == reflect.Slice:
		return "a list"
	}
	return "fields: " + strings.Join(names(t), ", ")
}

func emptyHint(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer, reflect.Struct:
		return "leave the field away, or write {} for its defaults"
	case reflect.String:
		return `leave the field away, or write "" for an empty text`
	}
	return "leave the field away for its default"
}

// describe says what a node is, for a sentence.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "an object with fields"
	case yaml.SequenceNode:
		return "a list"
	}
	if n.Tag == "!!str" {
		return "the text " + Quote(n.Value)
	}
	if r := []rune(n.Value); len(r) > 60 {
		return string(r[:57]) + "..."
	}
	return n.Value
}
