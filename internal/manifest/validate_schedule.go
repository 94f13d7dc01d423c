package manifest

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/netresearch/go-cron"

	"github.com/levada-io/levada/api/v1alpha1"
)

// sixFields reads seconds, minutes, hours, day of month, month, day of week.
var sixFields = cron.MustNewParser(cron.Second | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

var sideInputShortcuts = []string{"@hourly", "@daily", "@weekly", "@monthly", "@yearly"}

const maxSchedule = 256

// sideInputSchedule reports what Numaflow refuses only when the pod is running already.
func sideInputSchedule(r *report, schedule string, at path) {
	p := Problem{Code: CodeSchedule, Expected: "six or seven fields, seconds first, or " + oneOf(sideInputShortcuts)}
	fields := strings.Fields(schedule)
	switch {
	case len(schedule) > maxSchedule:
		p.Message = fmt.Sprintf("the schedule has %d characters", len(schedule))
	case strings.HasPrefix(schedule, "@every"):
		p.Message = fmt.Sprintf("%s is documented by Numaflow, and refused by its data plane", quote(schedule))
		p.DidYouMean = everyAsCron(schedule)
	case strings.HasPrefix(schedule, "@"):
		for _, s := range sideInputShortcuts {
			if schedule == s {
				return
			}
		}
		p.Message = fmt.Sprintf("there is no schedule %s", quote(schedule))
		p.DidYouMean = r.suggest(schedule, sideInputShortcuts)
	case len(fields) == 5:
		p.Message = fmt.Sprintf("%s has five fields, and the first must be the seconds", quote(schedule))
		p.DidYouMean = "0 " + strings.Join(fields, " ")
	case len(fields) != 6 && len(fields) != 7:
		p.Message = fmt.Sprintf("%s is not a schedule", quote(schedule))
	default:
		err := parseSix(strings.Join(fields[:6], " "))
		if err == nil && (len(fields) == 6 || validYears(fields[6])) {
			return
		}
		p.Message = fmt.Sprintf("%s is not a schedule", quote(schedule))
		if err != nil {
			p.Message += ": " + err.Error()
		} else {
			p.Message += ": the last field is the year"
		}
	}
	r.add(at, p)
}

// parseSix accepts 7 for Sunday too: Numaflow's side inputs count the days of the week from 1, its autoscaler from 0.
func parseSix(schedule string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	_, err = sixFields.Parse(schedule)
	return err
}

var yearPart = regexp.MustCompile(`^(\*|\d{4}(-\d{4})?)(/\d{1,3})?$`)

func validYears(field string) bool {
	for _, part := range strings.Split(field, ",") {
		m := yearPart.FindStringSubmatch(part)
		if m == nil {
			return false
		}
		for _, year := range strings.Split(m[1], "-") {
			if n, err := strconv.Atoi(year); err == nil && (n < 1970 || n > 2100) {
				return false
			}
		}
	}
	return true
}

// everyAsCron is the cron expression for @every with a duration that divides a minute, an hour or a day.
func everyAsCron(schedule string) string {
	d, err := time.ParseDuration(strings.TrimSpace(strings.TrimPrefix(schedule, "@every")))
	if err != nil || d <= 0 {
		return ""
	}
	switch {
	case d < time.Minute && time.Minute%d == 0 && d%time.Second == 0:
		return fmt.Sprintf("*/%d * * * * *", d/time.Second)
	case d >= time.Minute && d < time.Hour && time.Hour%d == 0 && d%time.Minute == 0:
		return fmt.Sprintf("0 */%d * * * *", d/time.Minute)
	case d >= time.Hour && d < 24*time.Hour && (24*time.Hour)%d == 0 && d%time.Hour == 0:
		return fmt.Sprintf("0 0 */%d * * *", d/time.Hour)
	case d == 24*time.Hour:
		return "@daily"
	}
	return ""
}

func timezone(r *report, zone, hint string, at path) {
	if zone == "" {
		return
	}
	_, err := time.LoadLocation(zone)
	if err == nil && zone != "Local" {
		return
	}
	r.add(at, Problem{
		Code: CodeTimezone, Message: fmt.Sprintf("there is no time zone %s", quote(zone)), Expected: "an IANA name such as Europe/Lisbon or UTC",
		DidYouMean: r.suggest(zone, commonZones), Hint: hint,
	})
}

// commonZones are suggested for near misses; every IANA name is accepted.
var commonZones = []string{
	"UTC", "Europe/London", "Europe/Lisbon", "Europe/Berlin", "Europe/Paris", "Europe/Madrid", "Europe/Rome", "Europe/Zurich",
	"Europe/Amsterdam", "Europe/Stockholm", "Europe/Warsaw", "Europe/Kyiv", "Europe/Istanbul", "America/New_York",
	"America/Chicago", "America/Denver", "America/Los_Angeles", "America/Sao_Paulo", "America/Toronto", "America/Mexico_City",
	"Africa/Cairo", "Africa/Johannesburg", "Africa/Lagos", "Asia/Dubai", "Asia/Kolkata", "Asia/Shanghai", "Asia/Hong_Kong",
	"Asia/Singapore", "Asia/Tokyo", "Asia/Seoul", "Australia/Sydney", "Pacific/Auckland",
}

func sideInputsAreValid(r *report, p pipelineView) {
	seen := map[string]bool{}
	for i, s := range p.spec.SideInputs {
		at := p.at.at("sideInputs").item(i)
		checkName(r, s.Name, at.at("name"))
		if seen[s.Name] && s.Name != "" {
			r.add(at.at("name"), Problem{Code: CodeSideInputTwice, Message: fmt.Sprintf("there is a side input %q already", s.Name)})
		}
		seen[s.Name] = true
		if s.Container == nil || s.Container.Image == "" && len(s.Container.Command) == 0 {
			r.required(at.at("container.image"), "the image that makes the value")
		}
		if s.Trigger == nil || s.Trigger.Schedule == "" {
			r.required(at.at("trigger.schedule"), "when the value is made, such as \"0 */5 * * * *\"")
			continue
		}
		sideInputSchedule(r, s.Trigger.Schedule, at.at("trigger.schedule"))
		if s.Trigger.Timezone != nil {
			timezone(r, *s.Trigger.Timezone, "Numaflow would use UTC, and say nothing", at.at("trigger.timezone"))
		}
	}
}

// checkCronScale looks at scaling by the clock.
func checkCronScale(r *report, s *v1alpha1.Scale, at path) {
	c, at := s.Cron, at.at("cron")
	if s.Disabled {
		r.add(at, Problem{Code: CodeCronScale, Message: "scale is disabled, so that its cron would do nothing"})
	}
	timezone(r, c.Timezone, "", at.at("timezone"))
	if len(c.Schedules) == 0 {
		r.required(at.at("schedules"), "at least one schedule")
	}
	for i, sch := range c.Schedules {
		checkCronSchedule(r, sch, at.at("schedules").item(i))
	}
}

func checkCronSchedule(r *report, s v1alpha1.CronSchedule, at path) {
	start := cronField(r, s.Start, at.at("start"))
	end := cronField(r, s.End, at.at("end"))
	if start != nil && end != nil {
		switch {
		case strings.Join(start, " ") == strings.Join(end, " "):
			r.add(at.at("end"), Problem{Code: CodeCronScale, Message: "end is the same as start"})
		case strings.Join(start[3:], " ") != strings.Join(end[3:], " "):
			r.add(at.at("end"), Problem{
				Code: CodeCronScale, Message: "end is on other days than start", Expected: fmt.Sprintf("an end with %q in the last three fields", strings.Join(start[3:], " ")),
				Hint: "make two schedules of one that goes over midnight",
			})
		}
	}
	if s.Min == nil {
		r.required(at.at("min"), "the fewest replicas")
	}
	if s.Max == nil {
		r.required(at.at("max"), "the most replicas")
	}
	atLeast(r, s.Min, 0, at.at("min"), CodeScaleBounds)
	atLeast(r, s.Max, 0, at.at("max"), CodeScaleBounds)
	if s.Min != nil && s.Max != nil && *s.Min > *s.Max {
		r.add(at.at("max"), Problem{Code: CodeScaleBounds, Message: fmt.Sprintf("max %d is less than min %d", *s.Max, *s.Min), Expected: "max at least as large as min"})
	}
}

// cronField gives the fields of a valid expression, nil otherwise.
func cronField(r *report, expression string, at path) []string {
	const expected = "six fields, seconds first, such as \"0 0 8 * * MON-FRI\""
	fields := strings.Fields(expression)
	p := Problem{Code: CodeCronScale, Expected: expected}
	switch {
	case expression == "":
		r.required(at, expected)
		return nil
	case len(fields) == 5:
		p.Message = fmt.Sprintf("%s has five fields, and the first must be the seconds", quote(expression))
		p.DidYouMean = "0 " + strings.Join(fields, " ")
	case len(fields) != 6 || len(expression) > maxSchedule:
		p.Message = fmt.Sprintf("%s is not a time", quote(expression))
	default:
		err := parseSix(expression)
		if err == nil {
			return fields
		}
		p.Message = fmt.Sprintf("%s is not a time: %s", quote(expression), err)
	}
	r.add(at, p)
	return nil
}
