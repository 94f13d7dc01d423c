package manifest

import (
	"cmp"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/levada-io/levada/api/v1alpha1"
)

// Validate reports everything that is wrong with manifests, sorted by place. It takes manifests as they were written or with
// their defaults, and changes nothing. What the engine of this version does not act on is for Unsupported, and what it cannot run for package vertex.
func Validate(objects []Object) Problems {
	var all Problems
	for _, o := range objects {
		r := &report{object: o}
		r.manifest()
		all = append(all, r.problems...)
	}
	all = append(all, namesakes(objects)...)
	all = append(all, bufferServices(objects)...)
	all.Sort()
	return all
}

func (r *report) manifest() {
	switch m := r.object.Manifest.(type) {
	case *v1alpha1.Pipeline:
		checkName(r, m.Name, "metadata.name")
		checkAnnotations(r, pipelineRoles(&m.Spec))
		checkPipeline(r, pipelineView{name: m.Name, spec: &m.Spec, at: "spec"})
	case *v1alpha1.MonoVertex:
		checkName(r, m.Name, "metadata.name")
		checkAnnotations(r, monoVertexRoles(m))
		checkMonoVertex(r, m)
	case *v1alpha1.InterStepBufferService:
		checkName(r, m.Name, "metadata.name")
		checkAnnotations(r, nil)
		checkBufferService(r, &m.Spec)
	case *v1alpha1.ServingPipeline:
		checkName(r, m.Name, "metadata.name")
		checkAnnotations(r, pipelineRoles(&m.Spec.Pipeline))
		checkServing(r, &m.Spec.Serving)
		checkPipeline(r, pipelineView{name: m.Name, spec: &m.Spec.Pipeline, at: "spec.pipeline", serving: true})
	case *v1alpha1.Vertex:
		checkName(r, m.Name, "metadata.name")
		checkAnnotations(r, map[string][]v1alpha1.Role{m.Spec.Name: rolesOf(m.Spec.Source, m.Spec.Sink, m.Spec.UDF)})
		checkVertexObject(r, m)
	}
}

// namesakes reports objects of one kind with the same name: the second would replace the first.
func namesakes(objects []Object) Problems {
	type identity struct{ kind, namespace, name string }
	first := map[identity]Object{}
	var problems Problems
	for _, o := range objects {
		if _, other := o.Manifest.(*Other); other || o.Manifest.GetName() == "" {
			continue
		}
		id := identity{o.kind(), o.Manifest.GetNamespace(), o.Manifest.GetName()}
		if before, twice := first[id]; twice {
			r := &report{object: o}
			file, line, _ := before.Position("metadata.name")
			p := Problem{Code: CodeNamesake, Message: fmt.Sprintf("%s %q is there twice", id.kind, id.name)}
			if file != "" {
				p.Hint = fmt.Sprintf("the first is at %s:%d", file, line)
			}
			if o.locator != nil && o.locator.file != file {
				p.Severity = SeverityWarning // files may be alternatives
			}
			r.add("metadata.name", p)
			problems = append(problems, r.problems...)
			continue
		}
		first[id] = o
	}
	return problems
}

// bufferServices warns of pipelines whose buffer service is not among those of the manifests. Where there are none, they are defined elsewhere.
func bufferServices(objects []Object) (problems Problems) {
	named := map[string][]string{} // by namespace
	services := map[[2]string]*v1alpha1.InterStepBufferService{}
	for _, o := range objects {
		if s, ok := o.Manifest.(*v1alpha1.InterStepBufferService); ok {
			named[s.Namespace] = append(named[s.Namespace], s.Name)
			services[[2]string{s.Namespace, s.Name}] = s
		}
	}
	check := func(o Object, spec *v1alpha1.PipelineSpec, at path) {
		known := named[o.Manifest.GetNamespace()]
		name := cmp.Or(spec.InterStepBufferServiceName, v1alpha1.DefaultISBName)
		r := &report{object: o}
		if s := services[[2]string{o.Manifest.GetNamespace(), name}]; s != nil {
			blocksFit(r, s)
			problems = append(problems, r.problems...)
		}
		if len(known) == 0 || contains(known, name) {
			return
		}
		r.add(at.at("interStepBufferServiceName"), Problem{
			Code: CodeISBUnknown, Message: fmt.Sprintf("no InterStepBufferService of these files is called %s", quote(name)), Expected: oneOf(known), DidYouMean: r.suggest(name, known),
		})
		problems = append(problems, r.problems...)
	}
	for _, o := range objects {
		switch m := o.Manifest.(type) {
		case *v1alpha1.Pipeline:
			check(o, &m.Spec, "spec")
		case *v1alpha1.ServingPipeline:
			check(o, &m.Spec.Pipeline, "spec.pipeline")
		}
	}
	return problems
}

// kind of the manifest by its Go type, for manifests that were made in memory and carry no kind.
func (o Object) kind() string {
	switch o.Manifest.(type) {
	case *v1alpha1.Pipeline:
		return v1alpha1.KindPipeline
	case *v1alpha1.MonoVertex:
		return v1alpha1.KindMonoVertex
	case *v1alpha1.InterStepBufferService:
		return v1alpha1.KindInterStepBufferService
	case *v1alpha1.ServingPipeline:
		return v1alpha1.KindServingPipeline
	case *v1alpha1.Vertex:
		return v1alpha1.KindVertex
	}
	return o.Kind()
}

func checkName(r *report, name string, at path) {
	if name == "" {
		if at == "metadata.name" && r.object.Manifest.GetGenerateName() != "" {
			return
		}
		r.required(at, "a name: lower-case letters, digits and '-', starting with a letter")
		return
	}
	if len(validation.IsDNS1035Label(name)) == 0 {
		return
	}
	p := Problem{
		Code: CodeName, Message: fmt.Sprintf("%s cannot be a name", quote(name)),
		Expected: "at most 63 lower-case letters, digits and '-', starting with a letter and not ending with '-'",
	}
	if fixed := asLabel(name); fixed != "" && len(validation.IsDNS1035Label(fixed)) == 0 {
		p.DidYouMean = fixed
	}
	r.add(at, p)
}

// asLabel makes the nearest valid name.
func asLabel(name string) string {
	if len(name) > 63 {
		return ""
	}
	return strings.Trim(strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			return c
		case c >= 'A' && c <= 'Z':
			return c + 'a' - 'A'
		}
		return '-'
	}, name), "-")
}

// positive and notNegative look at a duration that may be absent.
func positive(r *report, d *metav1.Duration, at path) {
	if d != nil && d.Duration <= 0 {
		r.add(at, Problem{Code: CodeDuration, Message: fmt.Sprintf("%s is %s", at.last(), d.Duration), Expected: "a duration above 0"})
	}
}

func notNegative(r *report, d *metav1.Duration, at path) {
	if d != nil && d.Duration < 0 {
		r.add(at, Problem{Code: CodeDuration, Message: fmt.Sprintf("%s is %s", at.last(), d.Duration), Expected: "a duration, 0s or more"})
	}
}

type number interface {
	~int | ~int32 | ~int64 | ~uint32 | ~uint64 | ~float64
}

// within reports a number outside of its bounds.
func within[N number](r *report, n *N, low, high N, at path, code Code) {
	if n == nil || *n >= low && *n <= high {
		return
	}
	r.add(at, Problem{Code: code, Message: fmt.Sprintf("%s is %v", at.last(), *n), Expected: fmt.Sprintf("%v to %v", low, high)})
}

// atLeast reports a number that is too small.
func atLeast[N number](r *report, n *N, low N, at path, code Code) {
	if n == nil || *n >= low {
		return
	}
	r.add(at, Problem{Code: code, Message: fmt.Sprintf("%s is %v", at.last(), *n), Expected: fmt.Sprintf("%v or more", low)})
}

// natsURL reports what is not a list of NATS servers. An address without a scheme is one.
func natsURL(r *report, value string, at path) {
	if value == "" {
		r.required(at, "nats://HOST:4222")
		return
	}
	for _, server := range strings.Split(value, ",") {
		server = strings.TrimSpace(server)
		if !strings.Contains(server, "://") {
			server = "nats://" + server
		}
		u, err := url.Parse(server)
		switch {
		case err != nil || u.Hostname() == "" || u.Path != "" && u.Scheme != "ws" && u.Scheme != "wss":
			r.add(at, Problem{Code: CodeNatsURL, Message: fmt.Sprintf("%s is not the address of a NATS server", quote(server)), Expected: "nats://HOST:4222, several joined by commas"})
		case u.Scheme != "nats" && u.Scheme != "tls" && u.Scheme != "ws" && u.Scheme != "wss":
			p := Problem{Code: CodeNatsURL, Message: fmt.Sprintf("a NATS server is not reached by %s", quote(u.Scheme)), Expected: "nats://, tls://, ws:// or wss://"}
			if u.Host != "" {
				p.DidYouMean = "nats://" + u.Host
			}
			r.add(at, p)
		case !validPort(u.Port()):
			r.add(at, Problem{Code: CodeNatsURL, Message: fmt.Sprintf("%s has no such port", quote(server)), Expected: "a port from 1 to 65535"})
		}
	}
}

func validPort(port string) bool {
	if port == "" {
		return true
	}
	n, err := strconv.Atoi(port)
	return err == nil && n >= 1 && n <= 65535
}

// hostPort reports what is not a HOST:PORT.
func hostPort(r *report, value string, at path) {
	host, port, err := net.SplitHostPort(value)
	if err != nil || host == "" || port == "" || !validPort(port) {
		r.add(at, Problem{Code: CodeAddress, Message: fmt.Sprintf("%s is not the address of a server", quote(value)), Expected: "HOST:PORT"})
	}
}

// choice is one of several fields of which one may be set.
type choice struct {
	name string
	set  bool
}

// exactlyOne reports when none or several of the choices are set.
func exactlyOne(r *report, at path, code Code, what string, choices []choice) {
	names := make([]string, len(choices))
	for i, c := range choices {
		names[i] = c.name
	}
	if atMostOne(r, at, code, what, choices) == 0 {
		r.missing(at, Problem{Code: code, Message: what + " has no type", Expected: "exactly " + oneOf(names)})
	}
}

// atMostOne reports when several of the choices are set, and says how many are.
func atMostOne(r *report, at path, code Code, what string, choices []choice) int {
	var set []string
	for _, c := range choices {
		if c.set {
			set = append(set, c.name)
		}
	}
	if len(set) > 1 {
		r.add(at.at(set[1]), Problem{Code: code, Message: fmt.Sprintf("%s has %s at once", what, listed(set)), Expected: "only one of them"})
	}
	return len(set)
}
