package builtin

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/vm"

	"github.com/levada-io/levada/internal/flow"
)

// maxExpression is the longest expression taken, in bytes: the parser's memory grows with it.
const maxExpression = 16 << 10

// expression is one over the payload of a message, in the language of Numaflow's old builtins: expr-lang, with payload, json, int, string and sprig.
type expression struct {
	text    string
	program *vm.Program
	idle    sync.Pool // of *evaluation
}

// evaluation is what one goroutine needs to evaluate.
type evaluation struct {
	env map[string]any
	vm  vm.VM
	// parsed is the payload that json parsed last: most expressions ask for it several times.
	parsed string
	object map[string]any
}

func newEvaluation() *evaluation {
	e := &evaluation{}
	e.env = map[string]any{"payload": "", "json": e.json, "object": e.json, "int": toInt, "string": toString, "sprig": sprig}
	return e
}

func compile(text string) (*expression, error) {
	if len(text) > maxExpression {
		return nil, fmt.Errorf("the expression has %d bytes; at most %d are taken", len(text), maxExpression)
	}
	check := &sprigCheck{}
	program, err := expr.Compile(text, expr.Env(newEvaluation().env), expr.Patch(check))
	if err == nil {
		err = check.err
	}
	if err != nil {
		return nil, fmt.Errorf("expression %q: %w", text, err)
	}
	x := &expression{text: text, program: program}
	x.idle.New = func() any { return newEvaluation() }
	return x, nil
}

// eval evaluates the expression for a payload.
func (x *expression) eval(payload []byte) (any, error) {
	e := x.idle.Get().(*evaluation)
	defer x.idle.Put(e)
	e.env["payload"] = string(payload)
	v, err := e.vm.Run(x.program, e.env)
	if err != nil {
		text, _, _ := strings.Cut(err.Error(), "\n") // then follow a picture of the expression
		return nil, fmt.Errorf("expression %q: %s", x.text, text)
	}
	return v, nil
}

func (x *expression) bool(payload []byte) (bool, error) {
	v, err := x.eval(payload)
	if err != nil {
		return false, err
	}
	b, ok := v.(bool)
	if !ok {
		return false, fmt.Errorf("expression %q: it gives %v (%T), and true or false is needed", x.text, v, v)
	}
	return b, nil
}

// sprigCheck finds functions that we do not have when the expression is compiled, not with the first message.
type sprigCheck struct{ err error }

func (c *sprigCheck) Visit(node *ast.Node) {
	m, ok := (*node).(*ast.MemberNode)
	if !ok {
		return
	}
	of, ok1 := m.Node.(*ast.IdentifierNode)
	name, ok2 := m.Property.(*ast.StringNode)
	if ok1 && ok2 && of.Value == "sprig" && sprig[name.Value] == nil && c.err == nil {
		c.err = fmt.Errorf("there is no sprig.%s here%s", name.Value, Near(name.Value, sprig))
	}
}

// The conversions that Numaflow's expressions know. What cannot be converted ends the evaluation: the machine turns a panic into an error.

func (e *evaluation) json(v any) map[string]any {
	text, ok := v.(string)
	if b, isBytes := v.([]byte); isBytes {
		text, ok = string(b), true
	}
	switch {
	case v == nil:
		return nil
	case !ok:
		panic(fmt.Errorf("json of a %T; it takes text", v))
	case e.object != nil && text == e.parsed:
		return e.object
	}
	object := map[string]any{}
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		panic(fmt.Errorf("%s is not a JSON object: %w", strconv.Quote(shorten(text)), err))
	}
	e.parsed, e.object = text, object
	return object
}

func toInt(v any) int {
	switch w := v.(type) {
	case int:
		return w
	case int64:
		return int(w)
	case float64:
		if w >= math.MinInt64 && w < math.MaxInt64 {
			return int(w)
		}
	case string:
		if n, err := strconv.Atoi(w); err == nil {
			return n
		}
	case []byte:
		if n, err := strconv.Atoi(string(w)); err == nil {
			return n
		}
	}
	panic(fmt.Errorf("%s is not a whole number", shorten(fmt.Sprintf("%v", v))))
}

func toString(v any) string {
	switch w := v.(type) {
	case nil:
		return ""
	case string:
		return w
	case []byte:
		return string(w)
	case float64:
		return strconv.FormatFloat(w, 'f', -1, 64) // an epoch must not become 1.6e+09
	}
	return fmt.Sprintf("%v", v)
}

// shorten bounds what a payload adds to an error.
func shorten(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

// Filter keeps the messages for which the argument expression is true.
func Filter(given map[string]string, _ Options) (Map, error) {
	x, err := compile(given["expression"])
	if err != nil {
		return nil, err
	}
	return Each(func(m *flow.Message) (bool, error) { return x.bool(m.Value) }), nil
}

// TimeExtractor sets the event time to what the argument expression finds in the payload, read with the argument format, a layout of Go.
func TimeExtractor(given map[string]string, opt Options) (Map, error) {
	extract, err := newExtractor(given["expression"], given["format"], opt)
	if err != nil {
		return nil, err
	}
	return Each(func(m *flow.Message) (bool, error) {
		extract.setTime(m)
		return true, nil
	}), nil
}

// TimeExtractionFilter keeps the messages for which filterExpr is true, and sets their event time with eventTimeExpr and eventTimeFormat.
func TimeExtractionFilter(given map[string]string, opt Options) (Map, error) {
	keep, err := compile(given["filterExpr"])
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(given["eventTimeExpr"]) == "" {
		return nil, errors.New(`the argument "eventTimeExpr" is missing`)
	}
	extract, err := newExtractor(given["eventTimeExpr"], given["eventTimeFormat"], opt)
	if err != nil {
		return nil, err
	}
	return Each(func(m *flow.Message) (bool, error) {
		ok, err := keep.bool(m.Value)
		if ok {
			extract.setTime(m)
		}
		return ok, err
	}), nil
}

// extractor finds the event time in a payload.
type extractor struct {
	at     *expression
	format string
	opt    Options
	failed atomic.Uint64
}

func newExtractor(text, format string, opt Options) (*extractor, error) {
	x, err := compile(text)
	if err != nil {
		return nil, err
	}
	return &extractor{at: x, format: format, opt: opt.withDefaults()}, nil
}

// setTime keeps the event time if there is no other to be found.
func (e *extractor) setTime(m *flow.Message) {
	v, err := e.at.eval(m.Value)
	if err == nil {
		var ns int64
		if ns, err = readTime(toString(v), e.format); err == nil {
			m.EventTime = ns
			return
		}
	}
	if n := e.failed.Add(1); bits.OnesCount64(n) == 1 { // 1, 2, 4, 8, ...: enough to see it, too few to fill a disk
		e.opt.Logger.Warn("no event time found in a payload; the message keeps the one it had", "vertex", e.opt.Vertex, "error", err, "so far", n)
	}
}
