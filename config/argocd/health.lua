-- Health of an ImageArchive for Argo CD, which knows the conditions of its own
-- kinds only. docs/operations.md says where it goes.
local status = obj.status or {}
-- Until the controller has looked at this generation, conditions are about another.
if status.conditions == nil or status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "waiting for the controller" }
end
local byType = {}
for _, condition in ipairs(status.conditions) do
  byType[condition.type] = condition
end
local ready, stalled = byType["Ready"], byType["Stalled"]
if stalled ~= nil and stalled.status == "True" then
  return { status = "Degraded", message = stalled.reason .. ": " .. stalled.message }
end
if ready == nil then
  return { status = "Progressing", message = "waiting for the controller" }
end
if ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
if ready.reason == "Suspended" then
  return { status = "Suspended", message = ready.message }
end
return { status = "Progressing", message = ready.reason .. ": " .. ready.message }
