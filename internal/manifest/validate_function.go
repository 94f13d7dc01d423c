package manifest

import (
	"fmt"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/levada-io/levada/api/v1alpha1"
)

// maxExpression bounds the arguments of built-in functions, which may be expressions: a parser's memory grows with them.
const maxExpression = 4096

func checkUDF(r *report, f *v1alpha1.UDF, vertex string, at path) {
	functionRuns(r, f.Container, f.Builtin, vertex, v1alpha1.RoleUDF, at)
	if f.GroupBy != nil {
		checkGroupBy(r, f.GroupBy, at.at("groupBy"))
	}
	if f.RetryStrategy == nil {
		return
	}
	checkRetry(r, f.RetryStrategy, at.at("retryStrategy"))
	if f.GroupBy != nil {
		r.add(at.at("retryStrategy"), Problem{Code: CodeReduceRetry, Message: "a reduce has no retryStrategy", Hint: "what a window holds is not tried again message by message"})
	} else if o := f.RetryStrategy.OnFailure; o != nil && *o == v1alpha1.OnFailureFallback {
		r.add(at.at("retryStrategy.onFailure"), Problem{Code: CodeFallback, Message: "a function has no fallback", Expected: "retry or drop"})
	}
}

// functionRuns reports a function with nothing to run, or with two things.
func functionRuns(r *report, c *v1alpha1.Container, b *v1alpha1.Builtin, vertex string, role v1alpha1.Role, at path) {
	if b == nil {
		containerRuns(r, c, vertex, role, at.at("container"))
		return
	}
	if c != nil {
		r.add(at.at("builtin"), Problem{Code: CodeContainerAndBuiltin, Message: "there is a container and a builtin", Expected: "only one of them"})
	}
	at = at.at("builtin")
	if b.Name == "" {
		r.required(at.at("name"), "the name of a built-in function, such as cat or filter")
	}
	for i, a := range b.Args {
		builtinArgument(r, a, at.at("args").item(i))
	}
	for _, k := range sortedKeys(b.KWArgs) {
		builtinArgument(r, b.KWArgs[k], at.at("kwargs").key(k))
	}
}

func builtinArgument(r *report, argument string, at path) {
	if n := utf8.RuneCountInString(argument); n > maxExpression {
		r.add(at, Problem{Code: CodeExpression, Message: fmt.Sprintf("the argument has %d characters", n), Expected: fmt.Sprintf("at most %d", maxExpression)})
	}
}

// containerRuns reports a user's container with neither an image nor a program.
func containerRuns(r *report, c *v1alpha1.Container, vertex string, role v1alpha1.Role, at path) {
	if v1alpha1.FunctionCommand(r.object.Manifest, vertex, role) != "" {
		return
	}
	if c != nil && (c.Image != "" || len(c.Command) > 0) {
		if c.Image == "" && c.Command[0] == "" {
			r.add(at.at("command").item(0), Problem{Code: CodeNothingToRun, Message: "the command is empty", Expected: "the program to start"})
		}
		return
	}
	p := Problem{
		Code: CodeNothingToRun, Message: fmt.Sprintf("the %s of vertex %q has neither an image nor a command", role, vertex),
		Expected: "an image; or a command without an image, which is a program on this machine",
		Hint:     fmt.Sprintf("the annotation %s can name a program too", annotationFor(vertex, role)),
	}
	if c == nil {
		r.missing(at, p)
	} else {
		r.missing(at.at("image"), p)
	}
}

func annotationFor(vertex string, role v1alpha1.Role) string {
	name := v1alpha1.AnnotationFunction + "." + vertex
	if !role.IsMain() {
		name += "." + string(role)
	}
	return name
}

func checkGroupBy(r *report, g *v1alpha1.GroupBy, at path) {
	w, window := &g.Window, at.at("window")
	exactlyOne(r, window, CodeWindow, "a window", []choice{
		{"fixed", w.Fixed != nil}, {"sliding", w.Sliding != nil}, {"session", w.Session != nil}, {"accumulator", w.Accumulator != nil},
	})
	length := func(d *metav1.Duration, at path, expected string) {
		if d == nil {
			r.required(at, expected)
		} else if d.Duration <= 0 {
			r.add(at, Problem{Code: CodeWindowLength, Message: fmt.Sprintf("%s is %s", at.last(), d.Duration), Expected: "a duration above 0"})
		}
	}
	if w.Fixed != nil {
		length(w.Fixed.Length, window.at("fixed.length"), "how long a window is")
	}
	if s := w.Sliding; s != nil {
		length(s.Length, window.at("sliding.length"), "how long a window is")
		length(s.Slide, window.at("sliding.slide"), "the time between the starts of two windows")
		if s.Length != nil && s.Slide != nil && s.Length.Duration > 0 && s.Slide.Duration > s.Length.Duration {
			r.add(window.at("sliding.slide"), Problem{
				Code: CodeSlideGaps, Message: fmt.Sprintf("slide %s is more than length %s: messages between two windows are in none", s.Slide.Duration, s.Length.Duration),
				Expected: fmt.Sprintf("at most %s", s.Length.Duration),
			})
		}
	}
	if w.Session != nil {
		length(w.Session.Timeout, window.at("session.timeout"), "the silence that closes a window")
	}
	if w.Accumulator != nil {
		length(w.Accumulator.Timeout, window.at("accumulator.timeout"), "the silence that drops the state")
	}
	notNegative(r, g.AllowedLateness, at.at("allowedLateness"))
	s, at := g.Storage, at.at("storage")
	if s == nil {
		r.missing(at, Problem{Code: CodeStorage, Message: "a reduce needs storage for its open windows", Expected: "one of emptyDir, no_store, persistentVolumeClaim", Hint: "storage: {persistentVolumeClaim: {volumeSize: 10Gi}} outlives the pod"})
		return
	}
	exactlyOne(r, at, CodeStorage, "storage", []choice{
		{"persistentVolumeClaim", s.PersistentVolumeClaim != nil}, {"emptyDir", s.EmptyDir != nil}, {"no_store", s.NoStore != nil},
	})
	checkPersistence(r, s.PersistentVolumeClaim, at.at("persistentVolumeClaim"))
}

func checkPersistence(r *report, p *v1alpha1.PersistenceStrategy, at path) {
	if p != nil && p.VolumeSize != nil && p.VolumeSize.Sign() <= 0 {
		r.add(at.at("volumeSize"), Problem{Code: CodeNumber, Message: fmt.Sprintf("volumeSize is %s", p.VolumeSize), Expected: "a quantity above 0, such as 20Gi"})
	}
	if p != nil && p.AccessMode != nil {
		enum(r, at.at("accessMode"), CodeEnum, string(*p.AccessMode), "ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod")
	}
}
