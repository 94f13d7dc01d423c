package manifest

import (
	"encoding"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	kjson "sigs.k8s.io/json"

	"github.com/levada-io/levada/api/v1alpha1"
)

// checkTypes reports every unknown field and every value of the wrong type, takes them out of the document, so that the rest
// can be decoded, and gives their paths.
//
// The decoder itself stops at the first wrong type, does not say where a bad duration is, and cannot suggest a field. So
// this walks over the document along the Go types, which are the only place where fields are declared, and asks the decoder
// about each leaf.
func checkTypes(r *report, document map[string]any, m v1alpha1.Manifest) []path {
	c := typeCheck{report: r}
	c.value(document, reflect.TypeOf(m).Elem(), "")
	return c.broken
}

type typeCheck struct {
	report *report
	broken []path
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// value says whether the decoder would take v, whose parts it will take by then.
func (c *typeCheck) value(v any, t reflect.Type, at path) bool {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v == nil {
		return true // null leaves any field as it is
	}
	if p := reflect.PointerTo(t); p.Implements(jsonUnmarshaler) || p.Implements(textUnmarshaler) {
		return c.leaf(v, t, at)
	}
	switch t.Kind() {
	case reflect.Struct:
		return c.object(v, t, at)
	case reflect.Map:
		fields, ok := v.(map[string]any)
		if !ok {
			return c.wrongType(v, t, at)
		}
		for _, name := range sortedKeys(fields) {
			if !c.value(fields[name], t.Elem(), at.key(name)) {
				delete(fields, name)
			}
		}
		return true
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return c.leaf(v, t, at)
		}
		items, ok := v.([]any)
		if !ok {
			return c.wrongType(v, t, at)
		}
		for i, item := range items {
			if !c.value(item, t.Elem(), at.item(i)) {
				items[i] = nil // and not taken out, so that the others keep their places
			}
		}
		return true
	}
	return c.leaf(v, t, at)
}

func (c *typeCheck) object(v any, t reflect.Type, at path) bool {
	object, ok := v.(map[string]any)
	if !ok {
		return c.wrongType(v, t, at)
	}
	fields := fieldTypes(t)
	for _, name := range sortedKeys(object) {
		ft, known := fields[name]
		if !known {
			c.unknownField(name, at, object, fields)
		}
		if !known || !c.value(object[name], ft, at.at(name)) {
			delete(object, name)
		}
	}
	return true
}

func (c *typeCheck) unknownField(name string, at path, object map[string]any, fields map[string]reflect.Type) {
	known := slices.Collect(maps.Keys(fields))
	p := Problem{Code: CodeUnknownField, Message: fmt.Sprintf("%s has no field %s", at.last(), quote(name)), DidYouMean: c.report.suggest(name, known)}
	if p.DidYouMean == "" && len(known) <= 12 {
		p.Expected = oneOf(known)
	}
	if instead, ok := removedFields[name]; ok && p.DidYouMean == "" {
		p.Hint = instead
	}
	if p.DidYouMean == "" && name == "redis" && slices.Contains(known, "udsink") {
		p.Hint = "there is no sink for Redis; use udsink with a container"
	}
	if sibling := c.sibling(name, object, fields); sibling != "" {
		p.Hint = fmt.Sprintf("%s is a field of %s; indent it by two more spaces than %s", name, sibling, sibling)
		p.DidYouMean = ""
	}
	field := at.at(name)
	if strings.ContainsAny(name, ".[]") {
		field = at.key(name)
	}
	n := len(c.report.problems)
	c.report.add(field, p)
	if !c.report.full() && len(c.report.problems) > n { // the name is what is wrong, not the value
		q := &c.report.problems[n]
		q.File, q.Line, q.Column = c.report.object.locator.keyPosition(field)
	}
	c.broken = append(c.broken, field)
}

// sibling is the field of the same object to which an unknown one belongs, judged by its type: one that is empty, or that is all there can be. A field that
// is not indented enough ends up beside it.
func (c *typeCheck) sibling(name string, object map[string]any, fields map[string]reflect.Type) string {
	found := ""
	for _, s := range sortedKeys(fields) {
		t, present := fields[s], false
		if v, ok := object[s]; ok {
			present = true
			if m, isObject := v.(map[string]any); v != nil && (!isObject || m[name] != nil) {
				continue
			}
		}
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if !present || t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(jsonUnmarshaler) {
			continue
		}
		if _, ok := fieldTypes(t)[name]; !ok {
			continue
		}
		if object[s] == nil {
			return s // an empty one, right above
		}
		found = s
	}
	return found
}

// removedFields says what became of fields of earlier versions.
var removedFields = map[string]string{
	"redisStreams":                  "the source for Redis streams was removed; use udsource with a container",
	"nativeRedis":                   "give spec.redis.native",
	"redisBufferService":            "give spec.redis",
	"pauseGracePeriodBeforeRunning": "use lifecycle.pauseGracePeriodSeconds",
}

func (c *typeCheck) leaf(v any, t reflect.Type, at path) bool {
	text, err := json.Marshal(v)
	if err != nil || kjson.UnmarshalCaseSensitivePreserveInts(text, reflect.New(t).Interface()) != nil {
		return c.wrongType(v, t, at)
	}
	return true
}

func (c *typeCheck) wrongType(v any, t reflect.Type, at path) bool {
	p := Problem{Code: CodeWrongType, Message: fmt.Sprintf("%s is %s", at.last(), describe(v)), Expected: typeName(t)}
	text, isString := v.(string)
	switch {
	case t == reflect.TypeFor[metav1.Duration]() && isInteger(v):
		p.DidYouMean = fmt.Sprintf(`"%vs"`, v)
	case t.Kind() == reflect.String && !isString && !isCollectionValue(v):
		p.Hint = "put it in quotes"
	case isString && isNumeric(t.Kind()):
		if json.Unmarshal([]byte(text), reflect.New(t).Interface()) == nil {
			p.DidYouMean, p.Hint = text, "leave the quotes away"
		} else if n := plainNumber(text); n != "" && json.Unmarshal([]byte(n), reflect.New(t).Interface()) == nil {
			p.DidYouMean = n
		}
	case isString && t == reflect.TypeFor[metav1.Duration]():
		if d := plainDuration(text); d != "" {
			p.DidYouMean = fmt.Sprintf("%q", d)
		}
	case t.Kind() == reflect.Slice && !isCollectionValue(v):
		if text, err := json.Marshal(v); err == nil {
			p.DidYouMean = "[" + strings.Trim(string(text), `"`) + "]"
			if strings.ContainsAny(p.DidYouMean[1:len(p.DidYouMean)-1], ",:#{}[]&*!|>'\"%@`\\ ") {
				p.DidYouMean = "[" + string(text) + "]"
			}
		}
	}
	c.report.add(at, p)
	c.broken = append(c.broken, at)
	return false
}

var (
	numberWithUnit   = regexp.MustCompile(`^\s*([0-9][0-9_,]*)\s*([kKmMgG]?)(i?)[bB]?\s*(%?)\s*$`)
	durationWithUnit = regexp.MustCompile(`^\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*$`)
	unitsOfTime      = map[string]string{
		"": "s", "s": "s", "sec": "s", "secs": "s", "second": "s", "seconds": "s", "m": "m", "min": "m", "mins": "m", "minute": "m", "minutes": "m",
		"h": "h", "hr": "h", "hrs": "h", "hour": "h", "hours": "h", "ms": "ms", "msec": "ms", "msecs": "ms", "milli": "ms", "millis": "ms",
		"millisecond": "ms", "milliseconds": "ms", "us": "us", "usec": "us", "microsecond": "us", "microseconds": "us",
	}
)

// plainNumber is what a number with a unit probably means: 64k, 5Mi, 80%, 1_000; empty if it is none.
func plainNumber(text string) string {
	m := numberWithUnit.FindStringSubmatch(text)
	if m == nil || m[4] != "" && m[2] != "" {
		return ""
	}
	n, err := strconv.ParseInt(strings.NewReplacer("_", "", ",", "").Replace(m[1]), 10, 64)
	if err != nil {
		return ""
	}
	base := int64(1000)
	if m[3] != "" {
		base = 1024
	}
	for range strings.Index("KMG", strings.ToUpper(m[2])) + 1 {
		if m[2] == "" || n > math.MaxInt64/base {
			break
		}
		n *= base
	}
	return strconv.FormatInt(n, 10)
}

// plainDuration is what a duration with another unit probably means: 1sec, 5 minutes, 2d; empty if it is none.
func plainDuration(text string) string {
	m := durationWithUnit.FindStringSubmatch(text)
	if m == nil {
		return ""
	}
	unit := strings.ToLower(m[2])
	if unit == "d" || unit == "day" || unit == "days" {
		if n, err := strconv.Atoi(m[1]); err == nil && n < 10000 {
			return strconv.Itoa(24*n) + "h"
		}
		return ""
	}
	if unit = unitsOfTime[unit]; unit == "" {
		return ""
	}
	return m[1] + unit
}

// fieldTypes are the fields of a struct by their JSON names, embedded ones included.
func fieldTypes(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case f.Anonymous && name == "":
			for n, ft := range fieldTypes(f.Type) {
				fields[n] = ft
			}
		case name != "":
			fields[name] = f.Type
		default:
			fields[f.Name] = f.Type
		}
	}
	return fields
}

// describe says what a value is, for a sentence.
func describe(v any) string {
	switch v := v.(type) {
	case nil:
		return "empty"
	case string:
		return fmt.Sprintf("the text %s", quote(v))
	case bool, int64:
		return fmt.Sprint(v)
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1e15 {
			return fmt.Sprintf("the number %.1f", v)
		}
		return fmt.Sprintf("the number %v", v)
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return fmt.Sprintf("a %T", v)
}

// quote is a text in quotes, cut when it is long.
func quote(s string) string {
	if r := []rune(s); len(r) > 60 {
		s = string(r[:57]) + "..."
	}
	return fmt.Sprintf("%q", s)
}

func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[metav1.Duration]():
		return `a duration such as "500ms", "10s" or "1h30m"`
	case reflect.TypeFor[resource.Quantity]():
		return "a quantity such as 500m, 1.5 or 20Gi"
	case reflect.TypeFor[intstr.IntOrString]():
		return `a number, or a percentage such as "25%"`
	case reflect.TypeFor[metav1.Time]():
		return "a time such as 2026-01-31T12:00:00Z"
	}
	switch t.Kind() {
	case reflect.String:
		return "a text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int32, reflect.Int64, reflect.Int:
		return "a whole number"
	case reflect.Uint32, reflect.Uint64:
		return "a whole number, 0 or more"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	}
	return "an object"
}

func isNumeric(k reflect.Kind) bool {
	return k >= reflect.Int && k <= reflect.Float64 || k == reflect.Bool
}

func isInteger(v any) bool { _, ok := v.(int64); return ok }

func isCollectionValue(v any) bool {
	switch v.(type) {
	case []any, map[string]any:
		return true
	}
	return false
}
