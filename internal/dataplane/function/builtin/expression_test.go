package builtin

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestExpressions(t *testing.T) {
	const payload = `{"id":"42","n":7,"big":1613685282,"name":" James ","tags":["a","b"],"sub":{"x":null}}`
	for expression, want := range map[string]any{
		`int(json(payload).id) + 1`:                                        43,
		`int(object(payload).n)`:                                           7,
		`json(payload).n > 6.5`:                                            true,
		`string(json(payload).big)`:                                        "1613685282",
		`string(json(payload).sub.x)`:                                      "",
		`sprig.trim(json(payload).name)`:                                   "James",
		`sprig.contains('James', json(payload).name)`:                      true,
		`sprig.b64dec(sprig.b64enc('x'))`:                                  "x",
		`sprig.substr(0, 3, 'abcdef') + sprig.trunc(-2, 'abcdef')`:         "abcef",
		`sprig.join('-', json(payload).tags)`:                              "a-b",
		`sprig.has('b', json(payload).tags)`:                               true,
		`sprig.default('none', json(payload).missing)`:                     "none",
		`sprig.ternary('y', 'n', json(payload).n == 7)`:                    "y",
		`sprig.regexMatch('^[0-9]+$', json(payload).id)`:                   true,
		`sprig.add(1, json(payload).n) + sprig.max(1, json(payload).n)`:    15,
		`sprig.date('2006', sprig.toDate('2006-01-02', '2021-02-18'))`:     "2021",
		`sprig.get(sprig.fromJson(payload), 'id')`:                         "42",
		`sprig.replace('a', 'b', 'banana') + sprig.trimPrefix('x', 'xyz')`: "bbnbnbyz",
	} {
		x, err := compile(expression)
		if err != nil {
			t.Error(err)
			continue
		}
		for range 2 { // the second finds the payload parsed
			if got, err := x.eval([]byte(payload)); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s = %v (%T), %v; want %v", expression, got, got, err, want)
			}
		}
	}
	for expression, want := range map[string]string{
		`int(json(payload).name)`:      "is not a whole number",
		`json(json(payload).n)`:        "takes text",
		`sprig.repeat(1000000, 'abc')`: "too long",
		`sprig.div(1, 0)`:              "divide by zero",
		`sprig.first(1)`:               "is not a list",
		`json('x').id`:                 "is not a JSON object",
	} {
		x, err := compile(expression)
		if err != nil {
			t.Error(err)
			continue
		}
		if _, err := x.eval([]byte(payload)); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", expression, err, want)
		}
	}
	x, err := compile("payload")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.bool([]byte("x")); err == nil || !strings.Contains(err.Error(), "true or false is needed") {
		t.Error(err)
	}
}

func TestTimes(t *testing.T) {
	const want = "2021-02-18T21:54:42"
	for _, text := range []string{
		"1613685282", "1613685282000", "1613685282000000", "1613685282000000000", "20210218215442", "1613685282.0",
		"2021-02-18T21:54:42Z", "2021-02-18T22:54:42+01:00", "2021-02-18T21:54:42", "2021-02-18 21:54:42", "2021-02-18 22:54:42 +0100", "2021-02-18 21:54:42 UTC",
		"2021/02/18 21:54:42", "Thu, 18 Feb 2021 21:54:42 GMT", "Thu, 18 Feb 2021 22:54:42 +0100", "Thu Feb 18 21:54:42 2021", "Feb 18, 2021 9:54:42 PM", "18/Feb/2021:21:54:42 +0000", " 1613685282 ",
	} {
		ns, err := readTime(text, "")
		if got := time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05"); err != nil || got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "03/04/2022", "161368528", "-1613685282", "soon", "99999999999999999999", "9999-01-01T00:00:00Z", "20211399"} {
		if ns, err := readTime(text, ""); err == nil {
			t.Errorf("%s is taken for %d", text, ns)
		}
	}
}
