package builtin

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Sprig are the names of the functions that expressions find under sprig, sorted.
func Sprig() []string { return slices.Sorted(maps.Keys(sprig)) }

// sprig is what expressions find under that name: the functions of the sprig library that have a use on a payload, with its order of arguments.
// Those that make random values, keys or certificates, or read the environment, are left out.
var sprig = map[string]any{
	// Text.
	"trim": strings.TrimSpace, "lower": strings.ToLower, "upper": strings.ToUpper,
	"trimAll":    func(cut, s string) string { return strings.Trim(s, cut) },
	"trimPrefix": func(prefix, s string) string { return strings.TrimPrefix(s, prefix) },
	"trimSuffix": func(suffix, s string) string { return strings.TrimSuffix(s, suffix) },
	"title":      title,
	"contains":   func(part, s string) bool { return strings.Contains(s, part) },
	"hasPrefix":  func(prefix, s string) bool { return strings.HasPrefix(s, prefix) },
	"hasSuffix":  func(suffix, s string) bool { return strings.HasSuffix(s, suffix) },
	"replace":    func(old, with, s string) string { return strings.ReplaceAll(s, old, with) },
	"repeat":     repeat,
	"substr":     substr,
	"trunc":      trunc,
	"nospace": func(s string) string {
		return strings.Map(func(r rune) rune {
			if unicode.IsSpace(r) {
				return -1
			}
			return r
		}, s)
	},
	"quote": func(v any) string { return strconv.Quote(toString(v)) }, "squote": func(v any) string { return "'" + toString(v) + "'" },
	"cat":       func(v ...any) string { return strings.Join(texts(v), " ") },
	"join":      func(sep string, list any) string { return strings.Join(texts(items(list)), sep) },
	"splitList": func(sep, s string) []string { return strings.Split(s, sep) },
	"toString":  toString, "b64enc": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
	"b64dec":    func(s string) string { return string(must(base64.StdEncoding.DecodeString(s))) },
	"sha1sum":   func(s string) string { h := sha1.Sum([]byte(s)); return hex.EncodeToString(h[:]) },
	"sha256sum": func(s string) string { h := sha256.Sum256([]byte(s)); return hex.EncodeToString(h[:]) },
	// Patterns; all of them bounded in time, as Go's are.
	"regexMatch":      func(pattern, s string) bool { return must(regexp.Compile(pattern)).MatchString(s) },
	"regexFind":       func(pattern, s string) string { return must(regexp.Compile(pattern)).FindString(s) },
	"regexReplaceAll": func(pattern, s, with string) string { return must(regexp.Compile(pattern)).ReplaceAllString(s, with) },
	// Numbers.
	"atoi": toInt, "int": toInt, "int64": func(v any) int64 { return int64(toInt(v)) }, "float64": toFloat,
	"add": func(v ...any) int {
		n := 0
		for _, x := range v {
			n += toInt(x)
		}
		return n
	},
	"add1": func(v any) int { return toInt(v) + 1 },
	"sub":  func(a, b any) int { return toInt(a) - toInt(b) },
	"mul": func(v ...any) int {
		n := 1
		for _, x := range v {
			n *= toInt(x)
		}
		return n
	},
	"div":   func(a, b any) int { return toInt(a) / toInt(b) },
	"mod":   func(a, b any) int { return toInt(a) % toInt(b) },
	"max":   func(first any, v ...any) int { return slices.Max(ints(first, v)) },
	"min":   func(first any, v ...any) int { return slices.Min(ints(first, v)) },
	"floor": func(v any) float64 { return math.Floor(toFloat(v)) },
	"ceil":  func(v any) float64 { return math.Ceil(toFloat(v)) },
	"round": func(v any, places int) float64 {
		scale := math.Pow10(places)
		return math.Round(toFloat(v)*scale) / scale
	},
	// Choices.
	"default": func(otherwise, v any) any {
		if empty(v) {
			return otherwise
		}
		return v
	},
	"empty": empty,
	"coalesce": func(v ...any) any {
		for _, x := range v {
			if !empty(x) {
				return x
			}
		}
		return nil
	},
	"ternary": func(yes, no any, which bool) any {
		if which {
			return yes
		}
		return no
	},
	// Lists and objects.
	"list":  func(v ...any) []any { return v },
	"first": func(list any) any { return at(items(list), 0) },
	"last":  func(list any) any { l := items(list); return at(l, len(l)-1) },
	"has": func(v, list any) bool {
		return slices.ContainsFunc(items(list), func(x any) bool { return reflect.DeepEqual(x, v) })
	},
	"get":      func(object map[string]any, key string) any { return object[key] },
	"hasKey":   func(object map[string]any, key string) bool { _, ok := object[key]; return ok },
	"keys":     func(object map[string]any) []string { return slices.Sorted(maps.Keys(object)) },
	"toJson":   func(v any) string { return string(must(json.Marshal(v))) },
	"fromJson": func(s string) (v any) { must(0, json.Unmarshal([]byte(s), &v)); return v },
	// Time.
	"now":       time.Now,
	"unixEpoch": func(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) },
	"date":      func(layout string, t time.Time) string { return t.UTC().Format(layout) },
	"toDate":    func(layout, s string) time.Time { return must(time.Parse(layout, s)) },
}

// must ends the evaluation with the error; the machine gives it back.
func must[V any](v V, err error) V {
	if err != nil {
		panic(err)
	}
	return v
}

func title(s string) string {
	start := true
	return strings.Map(func(r rune) rune {
		was := start
		start = unicode.IsSpace(r)
		if was {
			return unicode.ToTitle(r)
		}
		return r
	}, s)
}

func repeat(n int, s string) string {
	if n < 0 || n > 0 && len(s) > maxMade/n {
		panic(errors.New("repeat makes too long a text"))
	}
	return strings.Repeat(s, n)
}

// maxMade bounds what an expression can make out of a small payload.
const maxMade = 1 << 20

func substr(start, end int, s string) string {
	if end < 0 || end > len(s) {
		end = len(s)
	}
	start = min(max(start, 0), end)
	return s[start:end]
}

func trunc(n int, s string) string {
	switch {
	case n < 0 && len(s)+n > 0:
		return s[len(s)+n:]
	case n >= 0 && len(s) > n:
		return s[:n]
	}
	return s
}

func toFloat(v any) float64 {
	switch w := v.(type) {
	case float64:
		return w
	case int:
		return float64(w)
	case int64:
		return float64(w)
	case string:
		return must(strconv.ParseFloat(w, 64))
	}
	panic(fmt.Errorf("%s is not a number", shorten(fmt.Sprintf("%v", v))))
}

func ints(first any, more []any) []int {
	n := []int{toInt(first)}
	for _, v := range more {
		n = append(n, toInt(v))
	}
	return n
}

func empty(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	switch r.Kind() {
	case reflect.Slice, reflect.Map, reflect.String:
		return r.Len() == 0
	}
	return r.IsZero()
}

func items(list any) []any {
	switch l := list.(type) {
	case []any:
		return l
	case []string:
		all := make([]any, len(l))
		for i, s := range l {
			all[i] = s
		}
		return all
	case nil:
		return nil
	}
	panic(fmt.Errorf("%T is not a list", list))
}

func texts(v []any) []string {
	all := make([]string, len(v))
	for i := range v {
		all[i] = toString(v[i])
	}
	return all
}

func at(list []any, i int) any {
	if i < 0 || i >= len(list) {
		return nil
	}
	return list[i]
}
